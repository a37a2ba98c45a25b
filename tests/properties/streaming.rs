//! The available memory changes no result: a model whose blocks stay on disk gives the same bytes,
//! and so does half precision for values that it represents exactly.

use secateur_model::Model;
use secateur_model::stored::StorageDtype;
use secateur_model::walk;

use crate::support::{CHAIN, Sandbox, chain, largest, outcome, tiny_folder};

test!(streamed_model_gives_the_same_bytes);
/// Compares every table and every exported weight of the chain.
fn streamed_model_gives_the_same_bytes() {
    let sandbox = chain();
    let path = |folder: &str| format!("{folder}/chain");
    // The outcome of a run with these options, and its log.
    let run = |folder: &str, options: &[&str]| {
        let ran = sandbox.run(&[&["chain.toml", "--results", folder], options].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        let name = std::fs::read_dir(sandbox.path(&path(folder)))
            .unwrap()
            .flatten()
            .find(|entry| entry.path().is_dir());
        let variant = format!(
            "{}/{}",
            path(folder),
            name.unwrap().file_name().to_string_lossy()
        );
        (outcome(&sandbox, &variant), ran.err)
    };
    sandbox.write("chain.toml", CHAIN);
    let (resident, log) = run("resident", &["--set", "run.stream=false"]);
    assert!(log.contains("streamed=false"), "{log}");
    assert!(resident.len() >= 10);
    for (folder, setting) in [
        ("streamed", "run.stream=true"),
        ("small", "run.memory=1000"),
        ("tapes", "run.memory=64 MiB"),
    ] {
        let (again, log) = run(folder, &["--set", setting]);
        assert!(
            log.contains("streamed=true") == (folder != "tapes"),
            "{log}"
        );
        for ((name, before), (other, after)) in resident.iter().zip(&again) {
            assert!(
                name == other && before == after,
                "{setting}: {name} differs"
            );
        }
        assert_eq!(resident.len(), again.len());
    }
}

test!(half_precision_checkpoints_survive_saving_again);
/// A model stored in half precision is saved again without a changed bit, streamed from disk as
/// well.
fn half_precision_checkpoints_survive_saving_again() {
    let tiny = Model::load(&tiny_folder()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (precision, name) in [
        (StorageDtype::Float16, "half"),
        (StorageDtype::Bfloat16, "brain"),
    ] {
        let (first, second) = (
            folder.path().join(name),
            folder.path().join(format!("{name} again")),
        );
        tiny.save(&first, precision).unwrap();
        Model::open_streaming(&first)
            .unwrap()
            .save(&second, precision)
            .unwrap();
        let file = "model.safetensors";
        assert_eq!(
            std::fs::read(first.join(file)).unwrap(),
            std::fs::read(second.join(file)).unwrap()
        );
        let narrowed = Model::load(&first).unwrap();
        let worst = |a: &[f32], b: &[f32]| {
            assert_eq!(a.len(), b.len());
            let pairs = a.iter().zip(b);
            largest(pairs.map(|(a, b)| (a - b).abs() / a.abs().max(1e-3)))
        };
        let error = worst(tiny.embedding.values(), narrowed.embedding.values());
        assert!(
            error > 0.0 && error < if name == "half" { 5e-4 } else { 4e-3 },
            "{name}: {error}"
        );
        let config = std::fs::read_to_string(first.join("config.json")).unwrap();
        assert!(
            config.contains(&format!("\"torch_dtype\": \"{}\"", precision.torch_name())),
            "{config}"
        );
    }
}

test!(value_beyond_half_precision_is_an_error);
fn value_beyond_half_precision_is_an_error() {
    let mut model = Model::load(&tiny_folder()).unwrap();
    model.embedding.update(|values| values[7] = 7e4);
    let folder = tempfile::tempdir().unwrap();
    let error = model
        .save(&folder.path().join("half"), StorageDtype::Float16)
        .unwrap_err();
    assert!(
        format!("{error:?}").contains("model.embed_tokens.weight"),
        "{error:?}"
    );
    model
        .save(&folder.path().join("brain"), StorageDtype::Bfloat16)
        .unwrap();
}

test!(checkpoint_truncated_while_streamed_is_named);
/// A file that is truncated under a streamed model gives an error that names the file and the
/// tensor.
fn checkpoint_truncated_while_streamed_is_named() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("models/cut");
    crate::support::copy_folder(&tiny_folder(), &folder);
    let model = Model::open_streaming(&folder).unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(folder.join("model.safetensors"))
        .unwrap();
    file.set_len(1000).unwrap();
    let saved = model.save(&sandbox.path("saved"), StorageDtype::Float32);
    for unreadable in [
        model.embedding.read().unwrap_err().to_string(),
        walk::logits(&model, &[3, 1, 4]).unwrap_err().to_string(),
        model.is_finite().unwrap_err().to_string(),
        saved.unwrap_err().to_string(),
    ] {
        assert!(
            unreadable.contains("cannot read `model.embed_tokens.weight` of `")
                && unreadable.contains("models/cut/model.safetensors"),
            "{unreadable}"
        );
    }
}

test!(streamed_model_finishes_on_one_thread);
/// The thread that reads ahead uses the thread pool. A walk on a pool of one thread must not block
/// it.
fn streamed_model_finishes_on_one_thread() {
    let sandbox = chain();
    let ran = sandbox.run(&[
        "chain.toml",
        "--set",
        "run.stream=true",
        "--set",
        "run.threads=1",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.err);
}

test!(dtype_without_a_weight_format_is_rejected);
fn dtype_without_a_weight_format_is_rejected() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "plan.toml",
        "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n\n\
         [[stage]]\ntype = \"export\"\nformats = [\"plan\"]\ndtype = \"float16\"\n",
    );
    let ran = sandbox.run(&["check", "plan.toml"]);
    assert!(
        ran.code == 2 && ran.err.contains("only `hf` holds weights"),
        "{}",
        ran.err
    );
}
