//! Options: every mistake of a table in plain words, values of the command line and the
//! environment, and options that have no effect.

use secateur::pipeline::problem::Problem;
use secateur::plan::Plan;
use secateur::plan::check::{Overrides, check};

use super::check::WHOLE;
use crate::support::{Sandbox, chain};

/// The arguments of a command line: those that begin with `sweep ` are of `--sweep`, the others of
/// `--set`.
fn checked(pipeline: &str, arguments: &[&str]) -> Result<Plan, Vec<Problem>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.toml");
    std::fs::write(&path, pipeline).unwrap();
    let mut overrides = Overrides::default();
    for argument in arguments {
        match argument.strip_prefix("sweep ") {
            Some(sweep) => overrides.sweep.push(sweep.to_owned()),
            None => overrides.set.push((*argument).to_owned()),
        }
    }
    check(&path, &overrides, false).map_err(|invalid| invalid.problems)
}

/// Each problem as `line: message`.
fn problems(pipeline: &str, arguments: &[&str]) -> Vec<String> {
    let problems = checked(pipeline, arguments).err().unwrap_or_default();
    let records = problems.iter().map(Problem::to_record);
    records
        .map(|record| format!("{}: {}", record.line, record.message))
        .collect()
}

/// The warnings of a valid pipeline.
fn warnings(pipeline: &str, arguments: &[&str]) -> Vec<String> {
    let plan = checked(pipeline, arguments).unwrap();
    plan.warnings
        .into_iter()
        .map(|warning| warning.message)
        .collect()
}

/// The only problem of the pipeline with these arguments, as its message and its help.
fn problem(arguments: &[&str]) -> (String, String) {
    let problems = checked(WHOLE, arguments).err().unwrap_or_default();
    assert_eq!(problems.len(), 1, "{arguments:?}: {problems:?}");
    let problem = problems[0].clone();
    (problem.message, problem.help.unwrap_or_default())
}

test!(every_mistake_of_a_table_is_reported);
fn every_mistake_of_a_table_is_reported() {
    let text = r#"[run]
seed = -1
threads = "four"
rank = 8

[[stage]]
type = "importance"
method = "l3"
samples = 10.0
length = "64"
corpus = 2026-11-29
lenght = 3
rank = 8

[[stage]]
type = "recover"
dropout = 7
rank = 99999999999999999999
targets = ["q", "x", 3]
duration = { updates = "x", epoch = 2 }

[[stage]]
type = "repeat"
times = 2.5
[[stage.stage]]
type = "prune"
scope = true
ratio = 3

[sweep]
"prune.round_to" = [1, "2"]
"#;
    let found = problems(text, &[]);
    assert_eq!(
        found,
        [
            "2: `seed` of `[run]` must be at least 0, not the number -1",
            "3: `threads` of `[run]` must be a whole number, not the text \"four\"",
            "4: unknown key `rank` in `[run]`",
            "7: `importance` needs a model, which no stage before it makes",
            "7: `importance` needs the groups, which no stage before it makes",
            "8: unknown value `l3` in `importance`",
            "9: `samples` of `importance` must be a whole number, not the number 10.0",
            "10: `length` of `importance` must be a whole number, not the text \"64\"",
            "11: `corpus` of `importance` must be a text, not the date 2026-11-29",
            "12: unknown key `lenght` in `importance`",
            "13: unknown key `rank` in `importance`",
            "16: `recover` lacks the key `corpus`",
            "16: `recover` needs a model, which no stage before it makes",
            "17: 7 is not a share from 0 to below 1",
            "18: `rank` of `recover` must be at most 9223372036854775807, not the number \
             99999999999999999999",
            "19: unknown value `x` in `recover`",
            "19: `targets[2]` of `recover` must be one of `q`, `k`, `v`, `o`, `gate`, `up`, \
             `down`, not the number 3",
            "20: `duration.updates` of `recover` must be a whole number, not the text \"x\"",
            "20: unknown key `epoch` in `duration` of `recover`",
            "24: `times` of `repeat` must be a whole number, not the number 2.5",
            "26: `prune` needs scores of units, which no stage before it makes",
            "26: `prune` needs the groups, which no stage before it makes",
            "27: `scope` of `prune` must be one of `local`, `global`, not true",
            "28: a ratio of 3 prunes nothing or everything",
            "31: `round_to` of `prune` must be a whole number, not the text \"2\"",
        ]
    );
    for message in found {
        for word in ["expected", "invalid type", "map", "f64", "usize", "variant"] {
            assert!(!message.contains(word), "{message}: a word of the decoder");
        }
    }
}

test!(a_value_that_is_replaced_is_checked);
fn a_value_that_is_replaced_is_checked() {
    let wrong_ratio = WHOLE.replace("ratio = 0.25", "ratio = 5");
    let sweep = "[sweep]\n\"prune.ratio\" = [0.25, 0.5]\n";
    let expected = ["18: a ratio of 5 prunes nothing or everything"];
    assert_eq!(problems(&format!("{wrong_ratio}{sweep}"), &[]), expected);
    assert_eq!(problems(&wrong_ratio, &["prune.ratio=0.5"]), expected);
    let text_ratio = WHOLE.replace("ratio = 0.25", "ratio = \"much\"");
    assert_eq!(
        problems(&format!("{text_ratio}{sweep}"), &[]),
        ["18: `ratio` of `prune` must be a number, not the text \"much\""]
    );
    // A line of `[sweep]` that the command line replaces is checked as well.
    let wrong_sweep = format!("{WHOLE}[sweep]\n\"prune.ratio\" = [0.25, \"much\"]\n");
    assert_eq!(
        problems(&wrong_sweep, &["prune.ratio=0.5"]),
        ["24: `ratio` of `prune` must be a number, not the text \"much\""]
    );
    // Without a value of its own, or with a method that would need a corpus, the file is right.
    let no_ratio = WHOLE.replace("ratio = 0.25", "");
    assert_eq!(
        checked(&format!("{no_ratio}{sweep}"), &[])
            .unwrap()
            .variants
            .len(),
        2
    );
    let taylor = WHOLE.replace("\"l2\"", "\"taylor\"");
    assert!(checked(&taylor, &["importance.method=l1"]).is_ok());
}

test!(mistakes_name_the_likely_intention);
fn mistakes_name_the_likely_intention() {
    let helps = |text: &str| -> Vec<String> {
        let problems = checked(text, &[]).err().unwrap_or_default();
        problems
            .into_iter()
            .map(|problem| problem.help.unwrap_or_default())
            .collect()
    };
    let load = "[[stage]]\ntype = \"load\"\nmodel = \"m\"\n";
    for (text, help) in [
        (
            "[stage]\ntype = \"load\"\nmodel = \"m\"",
            "write [[stage]], with two brackets",
        ),
        (
            "[stage]\ntype = \"load\"\nmodel = \"m\"\n[stage]\ntype = \"prune\"",
            "write [[stage]], with two brackets",
        ),
        (&format!("seed = 3\n{load}"), "`seed` is a setting of [run]"),
        (
            &format!("{load}seed = 3"),
            "`seed` is a setting of [run]; `load` has: model, precision",
        ),
        (
            &format!("{load}rank = 3"),
            "`rank` is an option of `recover`; `load` has: model, precision",
        ),
        (
            &format!("{load}\"prune.ratio\" = [0.1]"),
            "`prune.ratio` belongs to [sweep]; `load` has: model, precision",
        ),
        (
            &format!("{load}[prune]\nratio = 0.5"),
            "a stage is written [[stage]] and type = \"prune\"",
        ),
        (
            &format!("{load}[[stage]]\nratio = 0.5"),
            "add type = \"prune\": its options are those of this type",
        ),
        (
            "[[stage]]\ntype = \"laod\"\nmodel = \"m\"",
            "did you mean `load`?",
        ),
        (
            "[[stage]]\ntype = \"load\"\nmodle = \"m\"",
            "did you mean `model`?",
        ),
        (
            "[[stage]]\ntype = \"load\"\nmodel = 5",
            "put it in quotes: \"5\"",
        ),
        (
            "[[stage]]\ntype = \"load\"\nmodel = [\"a\", \"b\"]",
            "write \"load.model\" = [\"a\", \"b\"] under [sweep], or give --sweep 'load.model=\"a\",\"b\"'",
        ),
        (
            &format!("[run]\nseed = [1, 2]\n{load}"),
            "run settings cannot be swept; write one value",
        ),
        (
            &format!("{load}[[stage]]\ntype = \"profile\"\nbatch = \"4\"\nrepeat = 5.0"),
            "remove the quotes: 4",
        ),
        (
            &format!("{load}[[stage]]\ntype = \"recover\"\ncorpus = \"t\"\nduration = 5"),
            "write duration = { updates = … } or duration = { epochs = … }",
        ),
    ] {
        let helps = helps(text);
        assert!(helps[0].contains(help), "{text}: {helps:?}");
    }
    let both = format!(
        "{load}[[stage]]\ntype = \"recover\"\ncorpus = \"t\"\nduration = {{ updates = 1, epochs = 2 }}"
    );
    assert_eq!(
        problems(&both, &[]),
        ["7: `duration` of `recover` has `updates` and `epochs`, and takes one of them"]
    );
}

test!(mistakes_of_the_syntax_are_told_in_plain_words);
fn mistakes_of_the_syntax_are_told_in_plain_words() {
    for (text, message) in [
        ("[[stage]]\ntype = load", "this is not a value"),
        ("[[stage]]\ntype = \"load", "this text is not closed"),
        ("[[stage]]\ntype = 'load", "this text is not closed"),
        ("[[stage]]\ntype: \"load\"", "this key has no value"),
        ("[[stage]\ntype = \"load\"", "this header is not closed"),
        ("[run\nseed = 1", "this header is not closed"),
        ("[[stage]]\nmodel = \"C:\\models\"", "this backslash"),
        (
            "[[stage]]\ntype = \"load\"\ntype = \"load\"",
            "this is written twice",
        ),
        (
            "[[stage]]\ntype = \"load\" model = \"m\"",
            "something follows the value",
        ),
        (
            "[sweep]\n\"prune.ratio\" = [.1]",
            "this number has no digits",
        ),
        ("[run]\nstream = True", "this is not a value"),
        (
            "[sweep]\n\"prune.ratio\" = [0.1, 0.2",
            "this list is not closed",
        ),
        ("{\"stage\": []}", ""),
    ] {
        // A mistake of the syntax hides the rest, and what the arguments would change.
        let found = problems(text, &["load.model=m"]);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        let expected = format!("this is not valid TOML: {message}");
        assert!(found[0].contains(&expected), "{text}: {found:?}");
        assert!(!found[0].contains("expected"), "{text}: {found:?}");
    }
}

test!(texts_stay_texts_on_the_command_line);
fn texts_stay_texts_on_the_command_line() {
    let option = |arguments: &[&str], tag: &str, key: &str| {
        let plan = checked(WHOLE, arguments).unwrap();
        let variant = plan.variants.iter().next().unwrap();
        let toml = plan.variant_toml(variant).unwrap();
        let table: toml::Table = toml.parse().unwrap();
        let stages = table["stage"].as_array().unwrap().clone();
        let mut stages = stages.into_iter();
        let stage = stages
            .find(|stage| stage["type"].as_str() == Some(tag))
            .unwrap();
        stage[key].clone()
    };
    for name in [
        "2026-11-29",
        "123",
        "1e5",
        "true",
        "0x10",
        "07:32:00",
        "1 # 2",
        "a b",
    ] {
        let set = format!("load.model={name}");
        assert_eq!(option(&[&set], "load", "model").as_str(), Some(name));
    }
    assert_eq!(
        option(&["load.model=\"123\""], "load", "model").as_str(),
        Some("123"),
        "quotes are those of TOML"
    );
    let tasks = option(
        &["evaluate.tasks=[\"a\", 2026-11-29, 1]"],
        "evaluate",
        "tasks",
    );
    assert_eq!(tasks, toml::Value::from(vec!["a", "2026-11-29", "1"]));
    assert_eq!(
        option(&["load.model = 12"], "load", "model").as_str(),
        Some("12"),
        "spaces as in the file"
    );
    assert_eq!(
        option(&["prune.round_to=2"], "prune", "round_to").as_integer(),
        Some(2)
    );
    let (message, help) = problem(&["prune.round_to=two"]);
    assert_eq!(
        message,
        "`round_to` of `prune` must be a whole number, not the text \"two\""
    );
    assert_eq!(help, "");
    for (set, expected) in [
        (
            "evaluate.corpora=a.txt",
            "write --set 'evaluate.corpora=[\"a.txt\"]'",
        ),
        (
            "evaluate.tasks=boolq,piqa",
            "write --set 'evaluate.tasks=[\"boolq\", \"piqa\"]'",
        ),
        (
            "evaluate.tasks=[boolq]",
            "write --set 'evaluate.tasks=[\"boolq\"]'",
        ),
        ("evaluate.tasks=5", "write --set 'evaluate.tasks=[\"5\"]'"),
        (
            "dependencies.mlp_layers=3",
            "write --set 'dependencies.mlp_layers=[…, …]'",
        ),
        ("prune.ratio=.5", "write --set 'prune.ratio=0.5'"),
    ] {
        let (message, help) = problem(&[set]);
        assert_eq!(help, expected, "{set}: {message}");
    }
}

test!(sweep_arguments_add_and_replace_lines);
fn sweep_arguments_add_and_replace_lines() {
    let swept = |pipeline: &str, arguments: &[&str]| -> Vec<String> {
        let plan = checked(pipeline, arguments).unwrap();
        let variants = plan.variants.iter();
        variants
            .map(|variant| variant.id.rsplit_once('-').unwrap().0.to_owned())
            .collect()
    };
    let added = ["l1-ratio0.1", "l1-ratio0.5", "l2-ratio0.1", "l2-ratio0.5"];
    let ratios = "sweep prune.ratio=0.1, 0.5";
    assert_eq!(
        swept(WHOLE, &["sweep importance.method=l1,l2", ratios]),
        added
    );
    assert_eq!(
        swept(WHOLE, &["sweep importance.method=[\"l1\", \"l2\"]", ratios]),
        added
    );
    // The variants are those of the same lines in the file.
    let file = format!(
        "{WHOLE}[sweep]\n\"importance.method\" = [\"l1\", \"l2\"]\n\"prune.ratio\" = [0.1, 0.5]\n"
    );
    let ids = |pipeline: &str, arguments: &[&str]| -> Vec<String> {
        let plan = checked(pipeline, arguments).unwrap();
        plan.variants
            .iter()
            .map(|variant| variant.id.clone())
            .collect()
    };
    assert_eq!(
        ids(&file, &[]),
        ids(WHOLE, &["sweep importance.method=l1,l2", ratios])
    );
    // A line is replaced at its place, and an option of a `zip` leaves its group.
    assert_eq!(
        swept(&file, &["sweep importance.method=random"]),
        ["random-ratio0.1", "random-ratio0.5"]
    );
    let zip = format!(
        "{WHOLE}[sweep]\nzip = [{{ \"importance.method\" = [\"l1\", \"l2\"], \"prune.ratio\" = \
         [0.1, 0.5] }}]\n"
    );
    assert_eq!(
        swept(&zip, &["sweep prune.ratio=0.3"]),
        ["l1-ratio0.3", "l2-ratio0.3"]
    );
    // Lists: each value is a list, or all of them are one.
    for lists in [
        "[\"tiny_boolq\"],[\"tiny_piqa\"]",
        "[[\"tiny_boolq\"],[\"tiny_piqa\"]]",
    ] {
        let sweep = format!("sweep evaluate.tasks={lists}");
        assert_eq!(ids(WHOLE, &[&sweep]).len(), 2, "{lists}");
    }
    assert_eq!(
        ids(
            WHOLE,
            &["sweep evaluate.tasks=[\"tiny_boolq\",\"tiny_piqa\"]"]
        )
        .len(),
        1
    );
    assert_eq!(ids(WHOLE, &["sweep load.model=2026-11-29,1e5"]).len(), 2);

    for (arguments, message) in [
        (
            &["sweep prune.ratio=0.1", "prune.ratio=0.2"][..],
            "`prune.ratio` is given to both --set and --sweep",
        ),
        (
            &["sweep prune.ratio=0.1", "prune[1].ratio=0.2"],
            "`prune.ratio` is given to both --set and --sweep",
        ),
        (&["sweep run.seed=1,2"], "run settings cannot be swept"),
        (&["sweep prune.ratio"], "`prune.ratio` has no value"),
        (
            &["sweep prune.ratio="],
            "`--sweep prune.ratio` has an empty value",
        ),
        (
            &["sweep prune.ratio=[]"],
            "`--sweep prune.ratio` has no value",
        ),
        (
            &["sweep prune.ratio=0.1,,0.2"],
            "`--sweep prune.ratio` has an empty value",
        ),
        (
            &["sweep prune.ratio=0.1,much"],
            "`ratio` of `prune` must be a number, not the text \"much\"",
        ),
        (
            &["sweep prune.ration=0.1"],
            "unknown key `ration` in `prune`",
        ),
        (
            &["sweep recover.rank=4,8"],
            "the pipeline has no stage of type `recover`",
        ),
        (
            &["sweep prune.ratio=0.1", "sweep prune.ratio=0.2"],
            "`prune.ratio` is swept twice",
        ),
    ] {
        assert_eq!(problem(arguments).0, message, "{arguments:?}");
    }
}

test!(values_with_commas_and_shares_are_explained);
fn values_with_commas_and_shares_are_explained() {
    let help = |argument: &str| {
        let problems = checked(WHOLE, &[argument]).unwrap_err();
        problems[0].to_record().help.unwrap_or_default()
    };
    for (argument, expected) in [
        ("prune.ratio=0.1,0.2", "--sweep 'prune.ratio=0.1,0.2'"),
        ("prune.ratio=0.1, 0.2", "\"prune.ratio\" = [0.1, 0.2]"),
        (
            "importance.method=l1,l2",
            "\"importance.method\" = [\"l1\", \"l2\"]",
        ),
        ("prune.ratio=25%", "prune.ratio=0.25"),
        ("prune.ratio=1/4", "prune.ratio=0.25"),
    ] {
        assert!(
            help(argument).contains(expected),
            "{argument}: {}",
            help(argument)
        );
    }
    assert_eq!(help("prune.ratio=0.1,much"), "");
}

test!(wrong_environment_variables_are_named);
fn wrong_environment_variables_are_named() {
    let sandbox = Sandbox::new();
    sandbox.write("whole.toml", WHOLE);
    let check = |variable: &str, value: &str| {
        let mut command = sandbox.command(&["check", "whole.toml"]);
        let output = command.env(variable, value).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    for (variable, value, message) in [
        (
            "RUNNER_SEED",
            "many",
            "`seed` of `[run]` must be a whole number",
        ),
        ("RUNNER_THREADS", "0", "0 threads cannot work"),
        (
            "RUNNER_STREAM",
            "yes",
            "`stream` of `[run]` must be true or false",
        ),
        (
            "RUNNER_MEMORY",
            "lots",
            "`memory` of `[run]` must be `auto`, a number of bytes",
        ),
        (
            "RUNNER_CACHE_LIMIT",
            "lots",
            "`cache_limit` of `[run]` must be a number of bytes, or a size such as \"4 GiB\"",
        ),
        (
            "RUNNER_DEVICE",
            "gpu",
            "`device` of `[run]` must be `auto`, `cpu`",
        ),
        ("RUNNER_LOG", "1", "unknown value `1` in `[run]`"),
    ] {
        let (code, text) = check(variable, value);
        assert_eq!(code, Some(2), "{variable}: {text}");
        let text = text.replace("\n  │ ", " ");
        let expected = format!("the environment variable {variable} is wrong:");
        assert!(text.contains(&expected), "{text}");
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&text).contains(message), "{text}");
    }
    for (variable, value) in [
        ("RUNNER_RESULTS", "2026-11-29"),
        ("RUNNER_CACHE", "true"),
        ("RUNNER_SEED", "7"),
        ("RUNNER_MEMORY", "4 GiB"),
        ("RUNNER_MEMORY", "4000000000"),
        ("RUNNER_STREAM", "true"),
        ("RUNNER_SEED", ""),
    ] {
        let (code, text) = check(variable, value);
        assert_eq!(code, Some(0), "{variable}={value}: {text}");
    }
}

test!(command_lines_that_do_not_fit_name_the_intention);
fn command_lines_that_do_not_fit_name_the_intention() {
    let sandbox = Sandbox::new();
    sandbox.write("whole.toml", WHOLE);
    std::fs::create_dir(sandbox.path("folder")).unwrap();
    sandbox.write("folder/inner.toml", WHOLE);
    let mut cases = vec![
        (&[][..], "runner check PIPELINE"),
        (
            &["run", "whole.toml"],
            "`runner whole.toml` runs a pipeline",
        ),
        (&["run"], "`runner PIPELINE` runs a pipeline"),
        (&["chek", "whole.toml"], "did you mean `check`?"),
        (&["chek"], "did you mean `check`?"),
        (&["whole.tml"], "did you mean `whole.toml`?"),
        (&["wohle.toml"], "did you mean `whole.toml`?"),
        (&["check", "whol.toml"], "did you mean `whole.toml`?"),
        (&["folder"], "`folder/inner.toml`"),
        (
            &["whole.toml", "folder/inner.toml"],
            "runner takes one pipeline",
        ),
        (&["nowhere"], "there is no file `nowhere`"),
    ];
    if cfg!(unix) {
        let made = std::process::Command::new("mkfifo")
            .arg(sandbox.path("pipe.toml"))
            .status();
        assert!(made.unwrap().success());
        cases.push((&["pipe.toml"], "`pipe.toml` is neither a file nor a folder"));
        cases.push((&["/dev/zero"], "`/dev/zero` is neither a file nor a folder"));
        std::os::unix::fs::symlink("gone.toml", sandbox.path("link.toml")).unwrap();
        cases.push((
            &["link.toml"],
            "is a link to `gone.toml`, which does not exist",
        ));
    }
    for (arguments, expected) in cases {
        let ran = sandbox.run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.err);
        assert!(ran.out.is_empty(), "{arguments:?}: {}", ran.out);
        assert!(ran.err.contains(expected), "{arguments:?}: {}", ran.err);
    }
}

test!(a_file_that_is_missing_at_several_places_is_one_problem);
fn a_file_that_is_missing_at_several_places_is_one_problem() {
    let sandbox = chain();
    let text = String::from_utf8(sandbox.read("chain.toml")).unwrap();
    let text = text.replace("datasets/tiny_world.txt", "gone.txt");
    let sweep = "[sweep]\n\"prune.ratio\" = [0.25, 0.5]\n";
    sandbox.write("chain.toml", format!("{text}{sweep}"));
    let ran = sandbox.run(&["check", "chain.toml", "--format", "json"]);
    let records: Vec<serde_json::Value> = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(records.len(), 1, "{}", ran.out);
    let help = records[0]["help"].as_str().unwrap();
    assert!(help.contains("the same holds for line "), "{help}");
}

test!(options_without_effect_are_warned_of);
fn options_without_effect_are_warned_of() {
    let with = |place: &str, lines: &str| WHOLE.replace(place, &format!("{place}\n{lines}"));
    let method = "method = \"l2\"";
    let tasks = "tasks = [\"tiny_boolq\"]";
    let load = "model = \"models/tiny\"";
    let generate = |lines: &str| {
        with(
            load,
            &format!("[[stage]]\ntype = \"generate\"\nprompts = [\"a\"]\n{lines}"),
        )
    };
    for (text, keys) in [
        (WHOLE.to_owned(), &[][..]),
        (
            with(method, "samples = 20\ncorpus = \"t\"\nfisher = \"sum\""),
            &["samples", "corpus", "fisher"],
        ),
        (
            with(method, "samples = 10\ntaylor = \"element-first\""),
            &[],
        ),
        (
            WHOLE.replace(
                method,
                "method = \"taylor\"\ncorpus = \"t\"\nfisher = \"sum\"",
            ),
            &["fisher"],
        ),
        (
            WHOLE.replace(
                method,
                "method = \"taylor\"\ncorpus = \"t\"\ntaylor = \"element-mixed\"\nfisher = \"sum\"",
            ),
            &[],
        ),
        (with(tasks, "shots_seed = 5"), &["shots_seed"]),
        (with(tasks, "shots_seed = 5\nshots = 1"), &[]),
        (
            WHOLE.replace(tasks, "corpora = [\"a\"]\nlimit = 5\nmax_length = 3"),
            &["limit", "max_length"],
        ),
        (generate("top_k = 4\nseed = 3"), &["top_k", "seed"]),
        (generate("top_k = 4\nseed = 3\ntemperature = 0.5"), &[]),
        (
            WHOLE.replace(
                "type = \"dependencies\"",
                "type = \"dependencies\"\ngrouping = \"layer\"\nmlp_layers = [0, 1]",
            ),
            &["mlp_layers"],
        ),
        (
            WHOLE
                .replace(
                    "type = \"dependencies\"",
                    "type = \"dependencies\"\ngrouping = \"layer\"",
                )
                .replace("ratio = 0.25", "ratio = 0.25\nround_to = 4"),
            &["round_to"],
        ),
        (
            WHOLE.replace(
                "type = \"aggregate\"",
                "type = \"aggregate\"\nwith = \"last\"\nlevel = \"unit\"",
            ),
            &["level"],
        ),
        (
            format!(
                "[run]\nseed = 7\n{load}",
                load = "[[stage]]\ntype = \"load\"\nmodel = \"m\""
            ),
            &["seed"],
        ),
        (format!("[run]\nseed = 7\n{WHOLE}"), &[]),
    ] {
        let warnings = warnings(&text, &[]);
        let warned: Vec<&str> = warnings
            .iter()
            .map(|warning| warning.split('`').nth(1).unwrap())
            .collect();
        assert_eq!(warned, keys, "{text}\n{warnings:?}");
        assert!(
            warnings
                .iter()
                .all(|warning| warning.contains("has no effect"))
        );
    }
    // An option is used if one variant, or one stage that the argument reaches, uses it.
    let samples = with(method, "samples = 20\ncorpus = \"t\"");
    let both = format!("{samples}[sweep]\n\"importance.method\" = [\"l2\", \"taylor\"]\n");
    assert_eq!(warnings(&both, &[]), [""; 0]);
    let second = "\n[[stage]]\ntype = \"evaluate\"\ncorpora = [\"a\"]\n";
    assert_eq!(
        warnings(&format!("{WHOLE}{second}"), &["evaluate.limit=5"]),
        [""; 0]
    );
    assert_eq!(
        warnings(&format!("{WHOLE}{second}"), &["evaluate[2].limit=5"]).len(),
        1
    );
}

test!(options_that_never_act_are_reported);
fn options_that_never_act_are_reported() {
    let recover = |lines: &str| {
        format!(
            "{WHOLE}\n[[stage]]\ntype = \"recover\"\ncorpus = \"t\"\nlearning_rate = 1e-3\n{lines}"
        )
    };
    let updates = |count: usize, warmup: usize| {
        recover(&format!(
            "duration = {{ updates = {count} }}\nwarmup = {warmup}"
        ))
    };
    assert_eq!(warnings(&updates(11, 10), &[]), [""; 0]);
    assert_eq!(
        warnings(&updates(60, 100), &[]),
        [
            "the warm-up takes 100 updates, and the training 60: the learning rate reaches 5.90e-4, \
          not 1e-3"
        ]
    );
    assert_eq!(
        problems(&updates(1, 1), &[]),
        [
            "29: the learning rate is 0 at every update: the warm-up takes 1 updates, and the \
          training 1"
        ]
    );
    // What depends on the model's shapes, in the check with its environment.
    let sandbox = Sandbox::new();
    sandbox.write("whole.toml", WHOLE);
    let records = |set: &[&str]| -> Vec<String> {
        let arguments: Vec<&str> = ["check", "whole.toml", "--format", "json"]
            .into_iter()
            .chain(set.iter().flat_map(|set| ["--set", set]))
            .collect();
        let ran = sandbox.run(&arguments);
        assert_eq!(ran.code, 0, "{}", ran.out);
        let records: Vec<serde_json::Value> = serde_json::from_str(&ran.out).unwrap();
        records
            .iter()
            .map(|record| record["message"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(records(&[]), [""; 0]);
    // The model has 6 layers of 4 key/value heads, and MLPs of 256 channels.
    assert_eq!(
        records(&["prune.round_to=256"]),
        ["with a multiple of 256, mlp groups of 256 units lose nothing at a ratio of 0.25"]
    );
    assert_eq!(records(&["prune.round_to=64"]), [""; 0]);
    assert_eq!(
        records(&["dependencies.mlp_layers=[0, 0]", "prune.ratio=0.2"]),
        ["a ratio of 0.2 removes nothing: the largest group has 4 units, and one of them is more"]
    );
    assert_eq!(
        records(&[
            "evaluate.protocol=llm-pruner",
            "evaluate.add_bos_token=false"
        ]),
        [
            "`add_bos_token` has no effect: questions of the protocol `llm-pruner` never have special \
          tokens"
        ]
    );
    // The task has 240 rows.
    assert_eq!(records(&["evaluate.limit=240"]), [""; 0]);
    assert_eq!(
        records(&["evaluate.limit=241"]),
        ["`limit` has no effect: every task has fewer rows"]
    );
    sandbox.write(
        "parts.txt",
        "one two three four\n--\nfive six seven eight\n",
    );
    let with_separator = |separator: &str| {
        records(&[
            "importance.method=wanda",
            "importance.corpus=parts.txt",
            "importance.sample=file",
            &format!("importance.separator={separator}"),
        ])
    };
    assert_eq!(with_separator("\n--\n"), [""; 0]);
    assert_eq!(
        with_separator("=="),
        ["the separator does not occur in `parts.txt`: the file is one document"]
    );
    assert_eq!(
        records(&["evaluate.window=64"]),
        ["`window` has no effect: no text is measured in windows"]
    );
}
