//! A model is the same whatever form its checkpoint has: in one file or in shards, in full or half
//! precision, dense or pruned and exported.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use secateur::stages::{Context, export};
use secateur_model::plan::{self, PruningPlan};
use secateur_model::walk;
use secateur_model::wiring::ChannelSpace;
use secateur_model::{Model, groups};
use serde_json::Value;

use crate::support::{context, copy_folder, json, tiny, tiny_folder};

/// A copy of models/tiny with its tensors spread over `files`, each stored as `dtype`, and its
/// config changed by `change`.
fn rewritten(
    files: &[&str],
    dtype: Dtype,
    change: impl FnOnce(&mut Value),
) -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&tiny_folder(), folder.path());
    let weights = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::remove_file(weights).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let cast = |data: &[u8]| -> Vec<u8> {
        let values = data
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        match dtype {
            Dtype::F16 => values
                .flat_map(|value| half::f16::from_f32(value).to_le_bytes())
                .collect(),
            Dtype::BF16 => values
                .flat_map(|value| half::bf16::from_f32(value).to_le_bytes())
                .collect(),
            _ => data.to_vec(),
        }
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = stored
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.shape().to_vec(), cast(view.data())))
        .collect();
    let mut index = serde_json::Map::new();
    for (file_index, file) in files.iter().enumerate() {
        let file_tensors = tensors.iter().skip(file_index).step_by(files.len());
        let views = file_tensors.map(|(name, shape, data)| {
            index.insert(name.clone(), (*file).into());
            (
                name.clone(),
                TensorView::new(dtype, shape.clone(), data).unwrap(),
            )
        });
        safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, &folder.path().join(file))
            .unwrap();
    }
    if files.len() > 1 {
        let text = serde_json::json!({ "metadata": {}, "weight_map": index }).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config = json(&path);
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    let model = Model::load(folder.path()).unwrap();
    (folder, model)
}

test!(sharded_and_half_precision_checkpoints_load_the_same_model);
fn sharded_and_half_precision_checkpoints_load_the_same_model() {
    let model = tiny();
    let logits = |model: &Model| walk::logits(model, &[0, 5, 9, 300, 44]).unwrap().into_vec();
    // The keys of config.json that newer versions of transformers write.
    let newer_keys = |config: &mut Value| {
        let config = config.as_object_mut().unwrap();
        let theta = config.remove("rope_theta").unwrap();
        config.remove("rope_scaling");
        config.remove("torch_dtype");
        config.insert("dtype".to_owned(), "float32".into());
        config.insert(
            "rope_parameters".to_owned(),
            serde_json::json!({ "rope_type": "default", "rope_theta": theta }),
        );
    };
    let shards = [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ];
    let (_folder, sharded) = rewritten(&shards, Dtype::F32, newer_keys);
    assert_eq!(logits(&sharded), logits(&model));
    for dtype in [Dtype::F16, Dtype::BF16] {
        let (_folder, halved) = rewritten(&["model.safetensors"], dtype, |_| {});
        let round = |value: f32| {
            if dtype == Dtype::F16 {
                half::f16::from_f32(value).to_f32()
            } else {
                half::bf16::from_f32(value).to_f32()
            }
        };
        for tensor_id in model.tensor_ids() {
            let expected: Vec<f32> = model
                .weight(tensor_id)
                .values()
                .iter()
                .map(|&value| round(value))
                .collect();
            assert_eq!(halved.weight(tensor_id).values(), expected, "{tensor_id:?}");
        }
    }
    let (folder, _) = rewritten(&shards, Dtype::F32, |_| {});
    std::fs::remove_file(folder.path().join(shards[1])).unwrap();
    let error = Model::load(folder.path()).err().unwrap().to_string();
    assert!(
        error.contains("it names 3 files, of which these are missing") && error.contains(shards[1]),
        "{error}"
    );
}

test!(exported_model_loads_with_the_same_logits);
/// A model whose widths differ between layers is exported and loaded without a changed bit.
fn exported_model_loads_with_the_same_logits() {
    let model = tiny();
    let kept: Vec<Vec<usize>> = vec![
        vec![0, 2],
        vec![1],
        vec![0, 1, 2, 3],
        vec![3],
        vec![0, 3],
        vec![1, 2, 3],
    ];
    let mut pruned = model.clone();
    let mut plan = PruningPlan::default();
    for (layer, heads) in kept.iter().enumerate() {
        for (space, units) in [
            (ChannelSpace::Heads, heads.clone()),
            (ChannelSpace::Mlp, (0..100 + 7 * layer).collect()),
        ] {
            let group = groups::block_group(&pruned, space, layer);
            pruned = plan::keep_units(&pruned, &group, &units);
            plan.record_kept_units(&group, &units);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let context = Context {
        output_folder: folder.path().to_owned(),
        ..context()
    };
    let options: export::Options =
        serde_json::from_value(serde_json::json!({ "formats": ["hf", "plan"] })).unwrap();
    export::run(&options, &context, &pruned, Some(&plan)).unwrap();
    let read = Model::load(&folder.path().join("hf")).unwrap();
    let ids = [0, 5, 9, 300, 44, 7];
    assert_eq!(
        walk::logits(&read, &ids).unwrap().into_vec(),
        walk::logits(&pruned, &ids).unwrap().into_vec()
    );
    assert_eq!(read.parameter_count(), pruned.parameter_count());
    let text = "Anna is in the garden.";
    let encoded = |model: &Model| {
        model
            .tokenizer
            .as_ref()
            .unwrap()
            .encode(text, true)
            .unwrap()
    };
    assert_eq!(encoded(&read), encoded(&model));
    // The plan applied to the dense checkpoint gives the same model.
    let stored: PruningPlan =
        serde_json::from_value(json(&folder.path().join("plan.json"))).unwrap();
    let rebuilt = stored.apply(&model).unwrap();
    assert!(
        rebuilt
            .tensor_ids()
            .into_iter()
            .all(|tensor_id| rebuilt.weight(tensor_id) == pruned.weight(tensor_id))
    );
    // Exporting the loaded model writes the same files.
    let again = tempfile::tempdir().unwrap();
    export::run(
        &options,
        &Context {
            output_folder: again.path().to_owned(),
            ..context
        },
        &read,
        Some(&plan),
    )
    .unwrap();
    for file in ["hf/model.safetensors", "hf/config.json", "plan.json"] {
        assert_eq!(
            std::fs::read(folder.path().join(file)).unwrap(),
            std::fs::read(again.path().join(file)).unwrap(),
            "{file}"
        );
    }
}
