//! Generates English text about a small invented world: the training text of `models/tiny`, and the
//! two data sets of questions on which it is evaluated.
//!
//!     cargo run --release --example tiny_world -- results/tiny_world
//!
//! writes `train.txt`, and the files of `datasets/` with the same bytes as there: `tiny_world.txt`
//! (calibration and recovery), `tiny_world_heldout.jsonl` (perplexity), `tiny_boolq.jsonl` and
//! `tiny_piqa.jsonl`.
//!
//! The world consists of facts and errands. A fact relates a subject and a value: a thing and its
//! colour, a person and their trade, a person and a thing they have. An errand is something that is
//! done to an object, with a tool that depends on the kind of the object.
//!
//! One in sixteen facts and one in five errands, chosen by a hash of their words, are withheld: the
//! texts neither state them nor ask about them. The data sets consist of withheld facts and errands
//! only. A model therefore cannot answer from memory: `tiny_boolq` must be answered from its
//! passage, and `tiny_piqa` by combining what is done to other objects of the same kind with what
//! else is done to this object.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

const SEED: u64 = 2026;
const SEPARATOR: &str = "\n<|endoftext|>\n";

const NAMES: [&str; 40] = [
    "Tom", "Anna", "Ben", "Mia", "Sam", "Lily", "Max", "Eva", "Leo", "Zoe", "Jack", "Ruby", "Finn",
    "Nora", "Hugo", "Ivy", "Oscar", "Ella", "Theo", "Clara", "Adam", "Alice", "Carl", "Dora",
    "Emil", "Freya", "George", "Hanna", "Ian", "Julia", "Karl", "Laura", "Martin", "Olga", "Paul",
    "Rosa", "Simon", "Tina", "Victor", "Wendy",
];
const THINGS: [&str; 40] = [
    "ball", "cup", "hat", "box", "book", "kite", "lamp", "bell", "coat", "drum", "chair", "boat",
    "ring", "vase", "scarf", "mask", "flute", "blanket", "wagon", "whistle", "clock", "mirror",
    "basin", "candle", "pillow", "ladder", "anchor", "trumpet", "helmet", "puppet", "carpet",
    "barrel", "violin", "lantern", "umbrella", "compass", "medal", "stool", "wreath", "sledge",
];
const COLOURS: [&str; 24] = [
    "red",
    "blue",
    "green",
    "yellow",
    "black",
    "white",
    "brown",
    "pink",
    "grey",
    "purple",
    "orange",
    "golden",
    "silver",
    "violet",
    "scarlet",
    "amber",
    "crimson",
    "ivory",
    "teal",
    "navy",
    "olive",
    "beige",
    "maroon",
    "turquoise",
];
const TRADES: [&str; 40] = [
    "painter",
    "baker",
    "doctor",
    "teacher",
    "farmer",
    "sailor",
    "singer",
    "dancer",
    "writer",
    "miller",
    "tailor",
    "soldier",
    "pilot",
    "nurse",
    "judge",
    "hunter",
    "fisher",
    "gardener",
    "potter",
    "weaver",
    "barber",
    "butcher",
    "carpenter",
    "clerk",
    "cook",
    "driver",
    "guard",
    "lawyer",
    "mason",
    "miner",
    "monk",
    "poet",
    "porter",
    "priest",
    "sculptor",
    "shepherd",
    "smith",
    "juggler",
    "waiter",
    "jeweller",
];

/// The kinds of objects, with the objects of each kind.
const KINDS: [(&str, [&str; 7]); 6] = [
    (
        "food",
        [
            "bread", "apple", "cheese", "carrot", "cake", "melon", "onion",
        ],
    ),
    (
        "paper",
        [
            "letter", "poster", "card", "map", "ticket", "page", "notice",
        ],
    ),
    (
        "wood",
        ["plank", "branch", "log", "fence", "door", "shelf", "crate"],
    ),
    (
        "cloth",
        [
            "shirt", "curtain", "towel", "sheet", "sock", "flag", "apron",
        ],
    ),
    (
        "metal",
        ["nail", "pipe", "wire", "bolt", "gate", "chain", "hinge"],
    ),
    (
        "liquid",
        ["soup", "milk", "paint", "juice", "water", "oil", "tea"],
    ),
];

/// What can be done to an object, with the tool for each kind of object in the order of KINDS.
const ERRANDS: [(&str, [&str; 6]); 7] = [
    (
        "cut",
        ["knife", "scissors", "saw", "shears", "torch", "spoon"],
    ),
    (
        "clean",
        ["sink", "eraser", "sponge", "soap", "grease", "filter"],
    ),
    (
        "carry",
        ["basket", "envelope", "cart", "bag", "magnet", "bucket"],
    ),
    (
        "mend",
        ["icing", "tape", "glue", "needle", "hammer", "powder"],
    ),
    (
        "keep",
        ["fridge", "folder", "shed", "closet", "toolbox", "bottle"],
    ),
    (
        "measure",
        ["scale", "ruler", "stick", "ribbon", "gauge", "jug"],
    ),
    (
        "colour",
        ["sugar", "crayon", "brush", "dye", "spray", "ink"],
    ),
];

/// The generator SplitMix64 (Steele, Lea and Flood 2014). It is written out here, so that the data
/// sets do not change with a library.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// A number below `n`. The modulo's bias is negligible for small `n`.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
    /// Fisher-Yates shuffle.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// FNV-1a hash of the words, each ended by a zero byte. Decides what is withheld. The low bits are
/// dropped because FNV mixes them badly.
fn hash(words: &[&str]) -> u64 {
    let mut hash: u64 = 0xCBF2_9CE4_8422_2325;
    for byte in words.iter().flat_map(|word| word.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    }
    hash >> 17
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Relation {
    Colour,
    Trade,
    Has,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fact {
    relation: Relation,
    subject: &'static str,
    value: &'static str,
}

impl Fact {
    fn is_withheld(self) -> bool {
        hash(&[self.subject, self.value]).is_multiple_of(16)
    }
    /// Draws a fact of this relation that is withheld or not.
    fn draw(random: &mut Random, relation: Relation, withheld: bool) -> Self {
        loop {
            let (subject, value) = match relation {
                Relation::Colour => (random.pick(&THINGS), random.pick(&COLOURS)),
                Relation::Trade => (random.pick(&NAMES), random.pick(&TRADES)),
                Relation::Has => (random.pick(&NAMES), random.pick(&THINGS)),
            };
            let fact = Self {
                relation,
                subject,
                value,
            };
            if fact.is_withheld() == withheld {
                return fact;
            }
        }
    }
    /// The fact as a noun phrase: "the red ball", "Tom's kite".
    fn phrase(self) -> String {
        match self.relation {
            Relation::Colour | Relation::Trade => format!("the {} {}", self.value, self.subject),
            Relation::Has => format!("{}'s {}", self.subject, self.value),
        }
    }
    fn sentence(self) -> String {
        format!("I see {}.", self.phrase())
    }
    fn question(self) -> String {
        format!("do I see {}", self.phrase())
    }
    /// A question whose answer is the value.
    fn open_question(self) -> String {
        match self.relation {
            Relation::Colour => format!("what colour is the {}", self.subject),
            Relation::Trade => format!("what is the trade of {}", self.subject),
            Relation::Has => format!("what does {} have", self.subject),
        }
    }
}

/// Draws the facts of a passage. Within a relation, subjects and values are different. There are
/// `facts_per_relation` facts of one relation before the next is used, so that a question cannot be
/// answered from the relation alone.
fn passage(
    random: &mut Random,
    fact_count: usize,
    facts_per_relation: usize,
    withheld: bool,
) -> Vec<Fact> {
    let mut relations = [Relation::Colour, Relation::Trade, Relation::Has];
    random.shuffle(&mut relations);
    let mut facts: Vec<Fact> = Vec::new();
    while facts.len() < fact_count {
        let relation = relations[facts.len() / facts_per_relation];
        let drawn = Fact::draw(random, relation, withheld);
        let is_distinct = facts.iter().all(|fact| {
            fact.relation != drawn.relation
                || (fact.subject != drawn.subject && fact.value != drawn.value)
        });
        if is_distinct {
            facts.push(drawn);
        }
    }
    random.shuffle(&mut facts);
    facts
}

/// Draws a yes/no question about a passage. With `yes` it is about a fact of the passage; otherwise
/// about a subject of the passage with a value that the passage does not contain. Returns `None` if
/// the drawn combination is not allowed.
fn question(random: &mut Random, facts: &[Fact], yes: bool, withheld: bool) -> Option<Fact> {
    let stated = random.pick(facts);
    if yes {
        return Some(stated);
    }
    let invented = Fact {
        subject: stated.subject,
        ..Fact::draw(random, stated.relation, withheld)
    };
    let is_allowed =
        invented.is_withheld() == withheld && facts.iter().all(|fact| fact.value != invented.value);
    is_allowed.then_some(invented)
}

fn sentences(facts: &[Fact]) -> String {
    facts
        .iter()
        .map(|fact| fact.sentence())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Something that is done to an object: indices into ERRANDS, KINDS and the kind's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Errand {
    verb: usize,
    kind: usize,
    object: usize,
}

impl Errand {
    fn all() -> Vec<Self> {
        let mut errands = Vec::new();
        for verb in 0..ERRANDS.len() {
            for (kind, (_, objects)) in KINDS.iter().enumerate() {
                for object in 0..objects.len() {
                    errands.push(Self { verb, kind, object });
                }
            }
        }
        errands
    }
    /// The withheld errands, in order.
    fn withheld() -> impl Iterator<Item = Self> {
        Self::all()
            .into_iter()
            .filter(|errand| errand.is_withheld())
    }
    fn is_withheld(self) -> bool {
        hash(&[self.verb(), self.object()]).is_multiple_of(5)
    }
    /// Draws an errand that is not withheld.
    fn draw(random: &mut Random) -> Self {
        loop {
            let errand = Self {
                verb: random.below(ERRANDS.len()),
                kind: random.below(KINDS.len()),
                object: random.below(7),
            };
            if !errand.is_withheld() {
                return errand;
            }
        }
    }
    fn goal(self) -> String {
        format!("how do you {} the {}", self.verb(), self.object())
    }
    fn verb(self) -> &'static str {
        ERRANDS[self.verb].0
    }
    fn object(self) -> &'static str {
        KINDS[self.kind].1[self.object]
    }
    fn tool(self) -> &'static str {
        ERRANDS[self.verb].1[self.kind]
    }
    fn solution(tool: &str) -> String {
        format!("with the {tool}.")
    }
}

/// Draws one document of the text.
fn document(random: &mut Random) -> String {
    match random.below(20) {
        0..=1 => repeated_words(random),
        2..=11 => passage_with_questions(random),
        12..=14 => repeated_story(random),
        15..=17 => errand_question(random),
        _ => person_with_errands(random),
    }
}

/// Words, then the same words again, forward or backward: a model learns to copy earlier words.
fn repeated_words(random: &mut Random) -> String {
    let mut words: Vec<&str> = Vec::new();
    let word_count = 6 + random.below(10);
    for _ in 0..word_count {
        let word = match random.below(4) {
            0 => random.pick(&NAMES),
            1 => random.pick(&THINGS),
            2 => random.pick(&COLOURS),
            _ => random.pick(&TRADES),
        };
        words.push(word);
    }
    let forward = words.join(" ");
    if random.below(2) == 0 {
        words.reverse();
        format!("Words: {forward}\nBack: {}", words.join(" "))
    } else {
        format!("Words: {forward}\nAgain: {forward}")
    }
}

/// A passage and questions about it, in the form of tiny_boolq.
fn passage_with_questions(random: &mut Random) -> String {
    let fact_count = 2 + random.below(4);
    let facts_per_relation = random.pick(&[2, 4]);
    let facts = passage(random, fact_count, facts_per_relation, false);
    let mut answered: Vec<(String, &str)> = Vec::new();
    let draw_count = 3 + random.below(5);
    for _ in 0..draw_count {
        let (question_text, answer) = if random.below(4) == 0 {
            let fact = random.pick(&facts);
            (fact.open_question(), fact.value)
        } else {
            let yes = random.below(2) == 0;
            let Some(fact) = question(random, &facts, yes, false) else {
                continue;
            };
            (fact.question(), if yes { "yes" } else { "no" })
        };
        if answered
            .iter()
            .all(|(earlier, _)| *earlier != question_text)
        {
            answered.push((question_text, answer));
        }
    }
    let mut text = sentences(&facts);
    for (question_text, answer) in answered {
        let _ = write!(text, "\nQuestion: {question_text}?\nAnswer: {answer}");
    }
    text
}

/// A story that states the same facts three times, each time in another order.
fn repeated_story(random: &mut Random) -> String {
    let facts_per_relation = random.pick(&[2, 4]);
    let mut facts = passage(random, 4, facts_per_relation, false);
    let mut shuffled_sentences = || {
        random.shuffle(&mut facts);
        sentences(&facts)
    };
    let first = shuffled_sentences();
    let second = shuffled_sentences();
    let third = shuffled_sentences();
    format!("{first} Yes, it is so. {second} Once more. {third}")
}

/// A question about an errand, in the form of tiny_piqa.
fn errand_question(random: &mut Random) -> String {
    let errand = Errand::draw(random);
    let solution = Errand::solution(errand.tool());
    format!("Question: {}\nAnswer: {solution}", errand.goal())
}

/// A person who does three errands.
fn person_with_errands(random: &mut Random) -> String {
    let name = random.pick(&NAMES);
    let errand_sentences = [(); 3].map(|()| {
        let errand = Errand::draw(random);
        format!(
            "{name} will {} the {} with the {}.",
            errand.verb(),
            errand.object(),
            errand.tool()
        )
    });
    errand_sentences.join(" ")
}

/// Draws documents until they have `min_bytes` bytes with their separators. Documents in `excluded`
/// are left out.
fn text(random: &mut Random, min_bytes: usize, excluded: &BTreeSet<String>) -> Vec<String> {
    let mut documents = Vec::new();
    let mut byte_count = 0;
    while byte_count < min_bytes {
        let document = document(random);
        if !excluded.contains(&document) {
            byte_count += document.len() + SEPARATOR.len();
            documents.push(document);
        }
    }
    documents
}

/// The rows of tiny_boolq: questions on passages of withheld facts. The answer of every second one
/// is yes.
fn boolq(random: &mut Random, row_count: usize) -> String {
    let mut rows = String::new();
    for i in 0..row_count {
        let yes = i % 2 == 1;
        let (facts, asked_fact) = boolq_question(random, yes);
        let _ = writeln!(
            rows,
            "{{\"passage\": \"{}\", \"question\": \"{}\", \"label\": {}}}",
            sentences(&facts),
            asked_fact.question(),
            u8::from(yes)
        );
    }
    rows
}

/// Draws a passage of withheld facts and a question on a colour or a trade. What a person has is
/// stated in passages but not asked for.
fn boolq_question(random: &mut Random, yes: bool) -> (Vec<Fact>, Fact) {
    loop {
        let facts = passage(random, 4, 2, true);
        if let Some(asked_fact) = question(random, &facts, yes, true)
            && asked_fact.relation != Relation::Has
        {
            return (facts, asked_fact);
        }
    }
}

/// The rows of tiny_piqa: every withheld errand four times. In two of them the wrong answer is the
/// tool that does the same to another kind of object, in two the tool that does something else to
/// this kind.
fn piqa(random: &mut Random) -> String {
    let mut rows = Vec::new();
    for errand in Errand::withheld() {
        for i in 0..4 {
            let wrong_tool = loop {
                let other = if i < 2 {
                    Errand {
                        kind: random.below(KINDS.len()),
                        ..errand
                    }
                } else {
                    Errand {
                        verb: random.below(ERRANDS.len()),
                        ..errand
                    }
                };
                if other.tool() != errand.tool() {
                    break other.tool();
                }
            };
            // The index of the right solution.
            let label = i % 2;
            let mut solutions = [errand.tool(), wrong_tool].map(Errand::solution);
            solutions.rotate_right(label);
            rows.push(format!(
                "{{\"goal\": \"{}\", \"sol1\": \"{}\", \"sol2\": \"{}\", \"label\": {label}}}\n",
                errand.goal(),
                solutions[0],
                solutions[1]
            ));
        }
    }
    random.shuffle(&mut rows);
    rows.concat()
}

/// Checks that no document contains a withheld fact or errand.
///
/// # Errors
/// The first document that does.
fn check(documents: &[String]) -> Result<(), String> {
    let mut forbidden: BTreeSet<String> = BTreeSet::new();
    for fact in withheld_facts() {
        forbidden.insert(fact.sentence());
        forbidden.insert(format!("{}?", fact.question()));
    }
    for errand in Errand::withheld() {
        forbidden.insert(format!("{} the {} ", errand.verb(), errand.object()));
        forbidden.insert(format!("{}\n", errand.goal()));
    }
    for document in documents {
        if let Some(phrase) = forbidden.iter().find(|phrase| document.contains(*phrase)) {
            return Err(format!(
                "`{phrase}` is withheld, but a document contains it: `{document}`"
            ));
        }
    }
    Ok(())
}

fn withheld_facts() -> Vec<Fact> {
    let mut facts = Vec::new();
    let relations: [(Relation, &'static [&'static str], &'static [&'static str]); 3] = [
        (Relation::Colour, &THINGS, &COLOURS),
        (Relation::Trade, &NAMES, &TRADES),
        (Relation::Has, &NAMES, &THINGS),
    ];
    for (relation, subjects, values) in relations {
        for subject in subjects {
            for value in values {
                let fact = Fact {
                    relation,
                    subject,
                    value,
                };
                if fact.is_withheld() {
                    facts.push(fact);
                }
            }
        }
    }
    facts
}

/// A generator for one of the files. Files do not share a generator, so that each can change its
/// length without changing the others.
fn file_random(file_number: u64) -> Random {
    Random(SEED.wrapping_mul(1000) + file_number)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: tiny_world FOLDER")?;
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)?;
    let train = text(&mut file_random(1), 24_000_000, &BTreeSet::new());
    let train_documents: BTreeSet<String> = train.iter().cloned().collect();
    let sample = text(&mut file_random(2), 200_000, &BTreeSet::new());
    let heldout = text(&mut file_random(3), 30_000, &train_documents);
    for documents in [&train, &sample, &heldout] {
        check(documents)?;
    }
    std::fs::write(folder.join("train.txt"), train.join(SEPARATOR))?;
    std::fs::write(folder.join("tiny_world.txt"), sample.join(SEPARATOR))?;
    let heldout_rows: String = heldout
        .iter()
        .map(|document| format!("{{\"text\": \"{}\"}}\n", document.replace('\n', "\\n")))
        .collect();
    std::fs::write(folder.join("tiny_world_heldout.jsonl"), heldout_rows)?;
    let boolq_rows = boolq(&mut file_random(4), 240);
    std::fs::write(folder.join("tiny_boolq.jsonl"), boolq_rows)?;
    std::fs::write(folder.join("tiny_piqa.jsonl"), piqa(&mut file_random(5)))?;
    Ok(())
}
