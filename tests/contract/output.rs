//! What a run prints: colour, the lines of its log, `-q` and `-v`, and JSON with the metrics.

use std::collections::BTreeMap;

use crate::support::{CHAIN, ProgramOutput, Sandbox, chain, columns};

/// Runs the program with environment variables.
fn run_with(sandbox: &Sandbox, arguments: &[&str], variables: &[(&str, &str)]) -> ProgramOutput {
    let mut command = sandbox.command(arguments);
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    ProgramOutput {
        code: output.status.code().unwrap_or(-1),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

test!(color_follows_the_environment);
/// Without a terminal there is colour only where it is forced; `NO_COLOR` is the stronger one.
fn color_follows_the_environment() {
    let sandbox = chain();
    let forced = ("CLICOLOR_FORCE", "1");
    let calls: [&[&str]; 4] = [
        &["check", "nowhere.toml"],
        &["--help"],
        &["chain.toml", "--what"],
        &["chain.toml"],
    ];
    for arguments in calls {
        let escapes = |variables: &[(&str, &str)]| {
            let ran = run_with(&sandbox, arguments, variables);
            (ran.out + &ran.err).matches('\x1b').count()
        };
        assert!(escapes(&[forced]) > 0, "{arguments:?}");
        for variables in [
            &[][..],
            &[("NO_COLOR", "1"), forced],
            &[("CLICOLOR_FORCE", "0")],
        ] {
            assert_eq!(escapes(variables), 0, "{arguments:?} {variables:?}");
        }
    }
}

test!(log_lines_have_options_as_in_toml_and_short_numbers);
fn log_lines_have_options_as_in_toml_and_short_numbers() {
    let sandbox = chain();
    let err = sandbox.run(&["chain.toml"]).err;
    let line = |part: &str| {
        let found = err.lines().find(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("{part}: {err}")).to_owned()
    };
    assert!(line("scored").contains(" method=taylor "), "{err}");
    assert!(line("aggregated").contains(" with=sum "), "{err}");
    assert!(line("exported").ends_with(" formats=[hf,plan]"), "{err}");
    assert!(line("loaded").contains(" model=models/tiny "), "{err}");
    assert!(line("pruned").ends_with(" %"), "{err}");
    let evaluated = line("): tiny_boolq acc ");
    assert!(evaluated.contains(" INFO evaluate ") && evaluated.contains(" %, "));
    let recovered = line("recovered");
    let (_, loss) = recovered.rsplit_once(" loss=").unwrap();
    let loss = loss.split(' ').next().unwrap();
    let digits: String = loss.chars().filter(char::is_ascii_digit).collect();
    assert_eq!(digits.trim_start_matches('0').len(), 3, "{loss}");
    assert!(
        recovered.contains(" INFO recover base-") && recovered.contains("(step 7, variant 1 of 1")
    );
}

test!(quiet_and_verbose_select_the_events);
fn quiet_and_verbose_select_the_events() {
    let sandbox = chain();
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let ran = run_with(&sandbox, &[&["chain.toml"], arguments].concat(), variables);
        assert_eq!(ran.code, 0, "{}", ran.err);
        (ran.out, ran.err)
    };
    let (table, events) = run(&["--verbose"], &[("SECATEUR_LOG", "error")]);
    assert!(
        events.contains("load begins") && events.contains(" DEBUG "),
        "{events}"
    );
    assert!(table.contains("tiny_boolq.acc"));
    // `tiny_boolq` of six documents is not above chance, which is a warning.
    let (table, warnings) = run(&["-q", "--force"], &[("SECATEUR_LOG", "debug")]);
    assert!(table.contains("tiny_boolq.acc"));
    assert!(
        warnings.lines().all(|line| line.contains(" WARN ")),
        "{warnings}"
    );
    // Also without the events of the stage, a warning names it and its variant.
    assert!(warnings.contains(" WARN evaluate base-"), "{warnings}");
    assert_eq!(
        run(&["-qq", "--force"], &[]),
        (String::new(), String::new())
    );
    assert_eq!(run(&[], &[("SECATEUR_LOG", "error")]).1, "");
    // A failure is printed all the same.
    let failed = sandbox.run(&["chain.toml", "-qq", "--set", "recover.learning_rate=1e38"]);
    assert!(
        failed.code == 1 && failed.err.contains("training has diverged"),
        "{}",
        failed.err
    );
    assert_eq!(sandbox.run(&["chain.toml", "-q", "-v"]).code, 2);
}

test!(errors_are_wrapped_between_words);
/// A path is longer than the line, and an id has hyphens: both stay whole.
fn errors_are_wrapped_between_words() {
    let sandbox = chain();
    let path = "a-folder/with-hyphens/and/a/path/that-is/longer-than-forty/characters";
    let set = format!("load.model={path}");
    let variables = [("COLUMNS", "40")];
    let ran = run_with(
        &sandbox,
        &["check", "chain.toml", "--set", &set],
        &variables,
    );
    assert_eq!(ran.code, 2);
    assert!(
        ran.err
            .lines()
            .any(|line| line.contains(&format!("`{path}"))),
        "{}",
        ran.err
    );
    let ran = run_with(&sandbox, &["report", path], &variables);
    assert!(
        ran.err.contains(path) && ran.err.lines().count() > 1,
        "{}",
        ran.err
    );
}

test!(json_of_a_run_and_of_a_merge_has_the_metrics);
fn json_of_a_run_and_of_a_merge_has_the_metrics() {
    let sandbox = chain();
    let sweep = format!("{CHAIN}\n[sweep]\n\"prune.ratio\" = [0.25, 0.5]\n");
    sandbox.write("sweep.toml", sweep);
    let json = |arguments: &[&str]| -> serde_json::Value {
        let ran = sandbox.run(arguments);
        serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{} {}", ran.out, ran.err))
    };
    json(&["sweep.toml", "--only", "ratio0.5", "--format", "json"]);
    let run = json(&["sweep.toml", "--only", "ratio0.25", "--format", "json"]);
    let variants = run["variants"].as_array().unwrap();
    assert_eq!(
        (variants.len(), &run["results"]),
        (1, &"results/sweep".into())
    );
    let row = &variants[0];
    assert_eq!(
        (&row["status"], &row["error"]),
        (&"succeeded".into(), &serde_json::Value::Null)
    );
    assert_eq!(row["prune.ratio"], 0.25);
    for column in [
        "params_after",
        "bytes_after",
        "param_ratio",
        "tiny_boolq.acc",
        "tiny_boolq.acc.stderr",
        "tiny_boolq.acc.dense",
        "tiny_boolq.acc.pruned",
        "tiny_boolq.acc.delta",
        "tiny_boolq.acc.delta_stderr",
        "tiny_boolq.acc.chance",
        "heldout.perplexity",
    ] {
        assert!(row[column].is_number(), "{column}: {row}");
    }
    // The same rows as those of `report` and `merge`.
    let report = json(&["report", "results/sweep", "--format", "json"]);
    assert_eq!(report[0]["variants"][0], *row);
    assert_eq!(report[0]["variants"].as_array().unwrap().len(), 2);
    let merged = json(&[
        "merge",
        "results/sweep",
        "--into",
        "joined",
        "--format",
        "json",
    ]);
    assert_eq!(merged[0]["variants"], report[0]["variants"]);
    assert_eq!(merged[0]["missing"], serde_json::json!([]));
}

/// The columns by which tables are joined.
const KEY_COLUMNS: [&str; 13] = [
    "variant", "step", "stage", "task", "split", "metric", "protocol", "doc", "layer", "group",
    "unit", "prompt", "input",
];

test!(every_table_has_plain_types);
/// Every reader of Parquet knows the types, and the columns by which tables are joined have the
/// same type in all of them.
fn every_table_has_plain_types() {
    let sandbox = chain();
    sandbox.write(
        "sweep.toml",
        format!(
            "{CHAIN}\n[[stage]]\ntype = \"generate\"\nprompts = [\"Once\"]\nmax_new_tokens = 2\n\
             [sweep]\n\"prune.ratio\" = [0.25, 0.5]\n\"aggregate.with\" = [\"sum\", \"max\"]\n"
        ),
    );
    let ran = sandbox.run(&["sweep.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let variant = sandbox.variant("sweep", "ratio0.25-sum-");
    let mut types: BTreeMap<String, String> = BTreeMap::new();
    let mut table_count = 0;
    for folder in ["results/sweep", &variant] {
        for entry in std::fs::read_dir(sandbox.path(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path
                .extension()
                .is_none_or(|extension| extension != "parquet")
            {
                continue;
            }
            table_count += 1;
            for column in columns(&path) {
                let (name, data_type) = column.split_once(": ").unwrap();
                let plain = ["Utf8", "UInt32", "UInt64", "Int64", "Float64", "Boolean"];
                let is_plain = plain.contains(&data_type);
                let is_list = name == "ids" && data_type.contains("UInt32");
                assert!(is_plain || is_list, "{}: {column}", path.display());
                if KEY_COLUMNS.contains(&name) {
                    let known = types.entry(name.to_owned()).or_insert(data_type.to_owned());
                    assert_eq!(known, data_type, "{}: {name}", path.display());
                }
            }
        }
    }
    // Nine tables of the variant, and two of the sweep.
    assert_eq!(table_count, 11);
    assert_eq!(
        (&types["variant"][..], &types["step"][..]),
        ("Utf8", "UInt32")
    );
}
