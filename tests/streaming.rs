//! Memory changes how, never what: a model whose blocks stay on disk gives the same bytes, and so does half precision where it
//! loses nothing.

use std::path::Path;

use secateur_model::Model;
use secateur_model::stored::StorageDtype;

use crate::support::{CHAIN, Sandbox, chain, outcome};

/// Every table and every exported weight of a whole chain.
#[test]
fn a_streamed_model_gives_the_same_bytes() {
    let sandbox = chain();
    let path = |folder: &str| format!("{folder}/chain");
    let ran = |folder: &str, how: &[&str]| {
        let ran = sandbox.run(&[&["chain.toml", "--results", folder], how].concat());
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
    let (resident, said) = ran("resident", &["--set", "run.stream=false"]);
    assert!(said.contains("streamed=false"), "{said}");
    assert!(resident.len() >= 10);
    for (folder, how) in [
        ("streamed", "run.stream=true"),
        ("small", "run.memory=1000"),
        ("tapes", "run.memory=64 MiB"),
    ] {
        let (again, said) = ran(folder, &["--set", how]);
        assert!(
            said.contains("streamed=true") == (folder != "tapes"),
            "{said}"
        );
        for ((name, before), (other, after)) in resident.iter().zip(&again) {
            assert!(name == other && before == after, "{how}: {name} differs");
        }
        assert_eq!(resident.len(), again.len());
    }
}

/// What is in float16 already comes back from a float16 export bit for bit, block by block from disk too.
#[test]
fn half_precision_loses_nothing_that_it_holds() {
    let tiny = Model::load(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/models/tiny"
    )))
    .unwrap();
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
            a.iter()
                .zip(b)
                .map(|(a, b)| (a - b).abs() / a.abs().max(1e-3))
                .fold(0.0, f32::max)
        };
        let off = worst(&tiny.embedding.values(), &narrowed.embedding.values());
        assert!(
            off > 0.0 && off < if name == "half" { 5e-4 } else { 4e-3 },
            "{name}: {off}"
        );
        let config = std::fs::read_to_string(first.join("config.json")).unwrap();
        assert!(
            config.contains(&format!("\"torch_dtype\": \"{}\"", precision.torch_name())),
            "{config}"
        );
    }
}

#[test]
fn a_number_that_half_precision_cannot_hold_is_an_error() {
    let mut model = Model::load(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/models/tiny"
    )))
    .unwrap();
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

/// A file that vanishes from under a streamed model fails the stage by name; what was complete stays.
#[test]
fn a_checkpoint_cut_short_while_it_is_streamed_is_named() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("models/cut");
    crate::support::copy_folder(
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny")),
        &folder,
    );
    let model = Model::open_streaming(&folder).unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(folder.join("model.safetensors"))
        .unwrap();
    file.set_len(1000).unwrap();
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        model.embedding.values().len()
    }))
    .unwrap_err();
    let unreadable = panic
        .downcast_ref::<secateur_tensor::WeightReadError>()
        .unwrap()
        .to_string();
    assert!(
        unreadable.contains("model.embed_tokens.weight")
            && unreadable.contains("model.safetensors"),
        "{unreadable}"
    );
}

/// The thread that reads ahead shares its work out in the pool, which a walk on one thread must not keep from it.
#[test]
fn a_streamed_model_on_one_thread_comes_to_an_end() {
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

#[test]
fn a_dtype_without_numbers_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "plan.toml",
        "[[stage]]\ntype = \"load\"\nmodel = \"models/tiny\"\n\n[[stage]]\ntype = \"export\"\nformats = [\"plan\"]\ndtype = \"float16\"\n",
    );
    let ran = sandbox.run(&["check", "plan.toml"]);
    assert!(
        ran.code == 2 && ran.err.contains("only `hf` holds weights"),
        "{}",
        ran.err
    );
}
