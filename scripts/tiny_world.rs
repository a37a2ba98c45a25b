//! A small world in English: the text that `models/tiny` learns from, and the two sets it is asked about.
//!
//!     cargo run --release --example tiny_world -- results/tiny_world
//!
//! writes `train.txt`, and again, byte for byte, what `datasets/` holds: `tiny_world.txt` (calibration and recovery),
//! `tiny_world_heldout.jsonl` (perplexity), `tiny_boolq.jsonl` and `tiny_piqa.jsonl`.
//!
//! A fact is a triple: a thing and its colour, a person and their trade, a person and what they have; or an errand:
//! what is done to which object. One in sixteen facts and one in five errands, picked by a hash of their words, are
//! withheld: no text states them and no question of the text asks about them. The sets state and ask nothing else. So
//! an answer cannot be remembered: `tiny_boolq` has to be read off its passage, and `tiny_piqa` put together from what
//! is done to objects of the same kind and what else is done to this object.

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

/// Kinds of objects, and the objects.
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

/// What is done, and with what to each kind, in the order of KINDS.
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

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    fn shuffle<T>(&mut self, items: &mut [T]) {
        (1..items.len())
            .rev()
            .for_each(|i| items.swap(i, self.below(i + 1)));
    }
}

/// FNV-1a, for what is withheld.
fn hash(words: &[&str]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0]));
    bytes.fold(0xCBF2_9CE4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3)
    }) >> 17
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
    /// What belongs together stands together.
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
    /// The question whose answer is the value.
    fn open_question(self) -> String {
        match self.relation {
            Relation::Colour => format!("what colour is the {}", self.subject),
            Relation::Trade => format!("what is the trade of {}", self.subject),
            Relation::Has => format!("what does {} have", self.subject),
        }
    }
}

/// So many facts, of which no two share a relation and a subject, or a relation and a value; `alike` of each relation,
/// so that one can be taken for another.
fn passage(random: &mut Random, facts_wanted: usize, alike: usize, withheld: bool) -> Vec<Fact> {
    let mut relations = [Relation::Colour, Relation::Trade, Relation::Has];
    random.shuffle(&mut relations);
    let mut facts: Vec<Fact> = Vec::new();
    while facts.len() < facts_wanted {
        let fact = Fact::draw(random, relations[facts.len() / alike], withheld);
        if facts.iter().all(|f| {
            f.relation != fact.relation || (f.subject != fact.subject && f.value != fact.value)
        }) {
            facts.push(fact);
        }
    }
    random.shuffle(&mut facts);
    facts
}

/// A question about a passage: a fact that it states, or one of its subjects with a value that it does not mention; none
/// if this draw may not be asked.
fn question(random: &mut Random, facts: &[Fact], yes: bool, withheld: bool) -> Option<Fact> {
    let fact = random.pick(facts);
    if yes {
        return Some(fact);
    }
    let drawn = Fact {
        subject: fact.subject,
        ..Fact::draw(random, fact.relation, withheld)
    };
    Some(drawn).filter(|drawn| {
        drawn.is_withheld() == withheld && facts.iter().all(|f| f.value != drawn.value)
    })
}

fn sentences(facts: &[Fact]) -> String {
    facts
        .iter()
        .map(|f| f.sentence())
        .collect::<Vec<_>>()
        .join(" ")
}

/// What is done to which object: indices into ERRANDS and KINDS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Errand {
    verb: usize,
    kind: usize,
    object: usize,
}

impl Errand {
    fn all() -> impl Iterator<Item = Self> {
        (0..ERRANDS.len()).flat_map(|verb| {
            (0..KINDS.len())
                .flat_map(move |kind| (0..7).map(move |object| Self { verb, kind, object }))
        })
    }
    fn is_withheld(self) -> bool {
        hash(&[ERRANDS[self.verb].0, KINDS[self.kind].1[self.object]]).is_multiple_of(5)
    }
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
        format!(
            "how do you {} the {}",
            ERRANDS[self.verb].0, KINDS[self.kind].1[self.object]
        )
    }
    fn tool(self) -> &'static str {
        ERRANDS[self.verb].1[self.kind]
    }
    fn solution(tool: &str) -> String {
        format!("with the {tool}.")
    }
}

/// One document of the text.
fn document(random: &mut Random) -> String {
    match random.below(20) {
        // words in a row, then again, forward or backward: how to look a thing up
        0..=1 => {
            let mut words: Vec<&str> = Vec::new();
            for _ in 0..6 + random.below(10) {
                let kind = random.below(4);
                words.push(match kind {
                    0 => random.pick(&NAMES),
                    1 => random.pick(&THINGS),
                    2 => random.pick(&COLOURS),
                    _ => random.pick(&TRADES),
                });
            }
            let said = words.join(" ");
            let backward = random.below(2) == 0;
            if backward {
                words.reverse();
            }
            format!(
                "Words: {said}\n{}: {}",
                if backward { "Back" } else { "Again" },
                words.join(" ")
            )
        }
        // a passage and questions about it, as tiny_boolq asks them
        2..=11 => {
            let (wanted, alike) = (2 + random.below(4), random.pick(&[2, 4]));
            let facts = passage(random, wanted, alike, false);
            let mut asked: Vec<(String, &str)> = Vec::new();
            for _ in 0..3 + random.below(5) {
                let next = if random.below(4) == 0 {
                    let fact = random.pick(&facts);
                    (fact.open_question(), fact.value)
                } else {
                    let yes = random.below(2) == 0;
                    let Some(fact) = question(random, &facts, yes, false) else {
                        continue;
                    };
                    (fact.question(), if yes { "yes" } else { "no" })
                };
                if asked.iter().all(|(before, _)| *before != next.0) {
                    asked.push(next);
                }
            }
            let mut text = sentences(&facts);
            for (question, answer) in asked {
                let _ = write!(text, "\nQuestion: {question}?\nAnswer: {answer}");
            }
            text
        }
        // a story that says everything three times, each time in another order
        12..=14 => {
            let alike = random.pick(&[2, 4]);
            let mut facts = passage(random, 4, alike, false);
            let mut said = || {
                random.shuffle(&mut facts);
                sentences(&facts)
            };
            format!("{} Yes, it is so. {} Once more. {}", said(), said(), said())
        }
        // errands, as tiny_piqa asks them
        15..=17 => {
            let errand = Errand::draw(random);
            format!(
                "Question: {}\nAnswer: {}",
                errand.goal(),
                Errand::solution(errand.tool())
            )
        }
        // a person at work
        _ => {
            let name = random.pick(&NAMES);
            let errands = [
                Errand::draw(random),
                Errand::draw(random),
                Errand::draw(random),
            ];
            let says = |e: Errand| {
                format!(
                    "{name} will {} the {} with the {}.",
                    ERRANDS[e.verb].0,
                    KINDS[e.kind].1[e.object],
                    e.tool()
                )
            };
            errands.map(says).join(" ")
        }
    }
}

/// So many bytes of documents, none of which is in `not`.
fn text(random: &mut Random, bytes: usize, not: &BTreeSet<String>) -> Vec<String> {
    let mut documents = Vec::new();
    let mut size = 0;
    while size < bytes {
        let document = document(random);
        if !not.contains(&document) {
            size += document.len() + SEPARATOR.len();
            documents.push(document);
        }
    }
    documents
}

/// `rows` questions on withheld facts, every second one with yes.
fn boolq(random: &mut Random, rows: usize) -> String {
    let mut row = |i: usize| {
        let yes = i % 2 == 1;
        let (facts, asked) = loop {
            let facts = passage(random, 4, 2, true);
            // what somebody has is told in the passages; asked for are colours and trades
            let asked =
                question(random, &facts, yes, true).filter(|asked| asked.relation != Relation::Has);
            if let Some(asked) = asked {
                break (facts, asked);
            }
        };
        let (passage, question, label) = (sentences(&facts), asked.question(), u8::from(yes));
        format!(
            "{{\"passage\": \"{passage}\", \"question\": \"{question}\", \"label\": {label}}}\n"
        )
    };
    (0..rows).map(&mut row).collect()
}

/// Every withheld errand four times: against the tool for another kind, twice, and against this kind's tool for
/// something else, twice.
fn piqa(random: &mut Random) -> String {
    let mut rows = Vec::new();
    for errand in Errand::all().filter(|errand| errand.is_withheld()) {
        for i in 0..4 {
            let other = loop {
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
            let label = i % 2;
            let mut solutions = [Errand::solution(errand.tool()), Errand::solution(other)];
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

/// # Errors
/// If a withheld fact or errand stands in a document.
fn check(documents: &[String]) -> Result<(), String> {
    let facts = |relation, subjects: &'static [&'static str], values: &'static [&'static str]| {
        subjects.iter().flat_map(move |subject| {
            values.iter().map(move |value| Fact {
                relation,
                subject,
                value,
            })
        })
    };
    let withheld = facts(Relation::Colour, &THINGS, &COLOURS)
        .chain(facts(Relation::Trade, &NAMES, &TRADES))
        .chain(facts(Relation::Has, &NAMES, &THINGS))
        .filter(|f| f.is_withheld());
    let mut forbidden: BTreeSet<String> = withheld
        .flat_map(|f| [f.sentence(), format!("{}?", f.question())])
        .collect();
    for errand in Errand::all().filter(|errand| errand.is_withheld()) {
        forbidden.insert(format!(
            "{} the {} ",
            ERRANDS[errand.verb].0, KINDS[errand.kind].1[errand.object]
        ));
        forbidden.insert(format!("{}\n", errand.goal()));
    }
    match documents
        .iter()
        .find_map(|d| forbidden.iter().find(|f| d.contains(*f)).map(|f| (d, f)))
    {
        Some((document, fact)) => Err(format!("`{fact}` is withheld and stands in `{document}`")),
        None => Ok(()),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: tiny_world FOLDER")?;
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)?;
    let stream = |purpose: u64| Random(SEED.wrapping_mul(1000) + purpose);
    let train = text(&mut stream(1), 24_000_000, &BTreeSet::new());
    let seen: BTreeSet<String> = train.iter().cloned().collect();
    let sample = text(&mut stream(2), 200_000, &BTreeSet::new());
    let unseen = text(&mut stream(3), 30_000, &seen);
    for documents in [&train, &sample, &unseen] {
        check(documents)?;
    }
    std::fs::write(folder.join("train.txt"), train.join(SEPARATOR))?;
    std::fs::write(folder.join("tiny_world.txt"), sample.join(SEPARATOR))?;
    let rows = unseen
        .iter()
        .map(|document| format!("{{\"text\": \"{}\"}}\n", document.replace('\n', "\\n")));
    std::fs::write(
        folder.join("tiny_world_heldout.jsonl"),
        rows.collect::<String>(),
    )?;
    std::fs::write(folder.join("tiny_boolq.jsonl"), boolq(&mut stream(4), 240))?;
    std::fs::write(folder.join("tiny_piqa.jsonl"), piqa(&mut stream(5)))?;
    Ok(())
}
