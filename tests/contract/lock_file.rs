//! `secateur.lock`: who writes it, what it holds, and what `--locked` refuses.

use super::kept_products::run_ok;
use crate::support::{CHAIN, Sandbox, chain};

test!(locked_run_requires_unchanged_inputs);
fn locked_run_requires_unchanged_inputs() {
    let sandbox = chain();
    let unlocked = sandbox.run(&["chain.toml", "--locked"]);
    assert_eq!(unlocked.code, 2);
    assert!(
        unlocked
            .err
            .contains("secateur.lock`: there is no such lock file"),
        "{}",
        unlocked.err
    );
    assert!(
        unlocked.err.contains("`runner lock chain.toml` writes it"),
        "{}",
        unlocked.err
    );
    run_ok(&sandbox, &["lock", "chain.toml"]);
    let lock = String::from_utf8(sandbox.read("secateur.lock")).unwrap();
    for file in [
        "models/tiny/model.safetensors",
        "models/tiny/tokenizer.json",
        "datasets/tiny_world.txt",
        "heldout.jsonl",
    ] {
        assert!(lock.contains(&format!("\"{file}\" = \"")), "{file}: {lock}");
    }
    assert!(lock.contains("program = \"secateur "));
    for locked in [&["--locked"][..], &["--set", "run.locked=true"]] {
        run_ok(&sandbox, &[&["chain.toml"], locked].concat());
    }
    sandbox.write("heldout.jsonl", "{\"text\": \"Another text.\"}");
    sandbox.write(
        "secateur.lock",
        lock.replace("program = \"secateur ", "program = \"secateur 9."),
    );
    for command in [
        &["chain.toml"][..],
        &["check", "chain.toml"],
        &["plan", "chain.toml"],
    ] {
        let ran = sandbox.run(&[command, &["--locked"]].concat());
        assert_eq!(ran.code, 2, "{}", ran.err);
        assert!(
            ran.err.contains("`heldout.jsonl` has changed"),
            "{}",
            ran.err
        );
        assert!(
            ran.err.contains("it was written by secateur 9."),
            "{}",
            ran.err
        );
        assert!(!ran.err.contains("tokenizer.json"), "{}", ran.err);
    }
    let output = run_ok(&sandbox, &["chain.toml"]);
    assert!(
        output.contains("`heldout.jsonl` has changed since"),
        "{output}"
    );
    run_ok(&sandbox, &["chain.toml", "--locked"]);
    // A model without one of its files counts as changed.
    std::fs::rename(
        sandbox.path("models/tiny/tokenizer_config.json"),
        sandbox.path("aside"),
    )
    .unwrap();
    let gone = sandbox.run(&["chain.toml", "--locked"]);
    assert!(
        gone.code == 2 && gone.err.contains("tokenizer_config.json` is gone"),
        "{}",
        gone.err
    );
    std::fs::rename(
        sandbox.path("aside"),
        sandbox.path("models/tiny/tokenizer_config.json"),
    )
    .unwrap();
    sandbox.write("other.toml", CHAIN);
    let missing = sandbox.run(&["other.toml", "--locked"]);
    assert!(
        missing.code == 2 && missing.err.contains("it has no entry for `other`"),
        "{}",
        missing.err
    );
    sandbox.write("secateur.lock", "what = [");
    let broken = sandbox.run(&["chain.toml", "--locked"]);
    assert!(
        broken.code == 2 && broken.err.contains("this is not a lock file"),
        "{}",
        broken.err
    );
}

test!(only_a_run_of_the_whole_file_updates_an_entry_that_exists);
fn only_a_run_of_the_whole_file_updates_an_entry_that_exists() {
    let sandbox = Sandbox::new();
    let load = |model: &str| format!("[[stage]]\ntype = \"load\"\nmodel = \"{model}\"\n");
    sandbox.write("load.toml", load("models/tiny"));
    // Without an entry a run writes none.
    run_ok(&sandbox, &["load.toml"]);
    assert!(!sandbox.path("secateur.lock").exists());
    run_ok(&sandbox, &["lock", "load.toml"]);
    let lock = sandbox.read("secateur.lock");
    sandbox.write("other.toml", load("models/tiny"));
    run_ok(&sandbox, &["other.toml"]);
    // Another model, by a path that holds on this machine only.
    crate::support::copy_folder(&sandbox.path("models/tiny"), &sandbox.path("mine"));
    let absolute = sandbox.path("mine").canonicalize().unwrap();
    let set = format!("load.model={}", absolute.display());
    for selection in [
        &["--set", &set][..],
        &["--only", "base"],
        &["--shard", "1/1"],
    ] {
        run_ok(&sandbox, &[&["load.toml"], selection].concat());
    }
    assert!(
        sandbox.read("secateur.lock") == lock,
        "nothing has changed it"
    );
    // `runner lock` writes what it is asked for, relative to the working directory.
    run_ok(&sandbox, &["lock", "load.toml", "--set", &set]);
    let text = String::from_utf8(sandbox.read("secateur.lock")).unwrap();
    assert!(text.contains("\"mine/model.safetensors\" = "), "{text}");
    assert!(
        !text.contains(&format!("\"{}", absolute.display())),
        "{text}"
    );
    run_ok(&sandbox, &["load.toml", "--locked", "--set", &set]);
    // The entry follows the file, and a run says so.
    let config = String::from_utf8(sandbox.read("models/tiny/config.json")).unwrap();
    sandbox.write("models/tiny/config.json", format!("{config}\n"));
    let output = run_ok(&sandbox, &["load.toml"]);
    assert!(
        output.contains("config.json` has changed since"),
        "{output}"
    );
    run_ok(&sandbox, &["load.toml", "--locked"]);
    let missing = sandbox.run(&["lock", "nowhere.toml"]);
    assert_eq!(missing.code, 2);
}
