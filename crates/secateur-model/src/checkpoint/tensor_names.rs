//! Compares the names of the stored tensors with those that the model needs: which are missing, which
//! are left over, and why.

use std::collections::{BTreeMap, BTreeSet};

use super::quantized::QUANTIZATION_KEY;
use super::{Checkpoint, CheckpointError};
use crate::family::BiasCondition;
use crate::wiring::{BlockTensor, TensorId};

/// Ends of the names of scales that quantise the keys and values that a server stores. The weights
/// do not depend on them.
const CACHE_SCALES: [&str; 4] = [".k_scale", ".v_scale", ".kv_scale", ".q_scale"];

/// Parts of the names of a LoRA adapter's tensors.
const ADAPTER_PARTS: [&str; 4] = [".lora_A.", ".lora_B.", ".lora_embedding_", ".base_layer."];

/// Ends of the names of buffers: tables that are computed again from the config, and hold no
/// parameters. transformers ignores them as well.
const BUFFERS: [&str; 6] = [
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "attn.masked_bias",
    "attention.masked_bias",
    "position_ids",
];

impl Checkpoint {
    /// An error that names every needed tensor that the checkpoint does not hold, and the likely
    /// reason.
    pub(super) fn check_missing(&self, needed: &[String]) -> Result<(), CheckpointError> {
        let is_missing = |name: &&String| !self.shard_by_tensor.contains_key(*name);
        let missing: Vec<String> = needed.iter().filter(is_missing).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let help = self.missing_help(needed, &missing);
        Err(CheckpointError::MissingTensors {
            list: self.list_names(&missing),
            count: missing.len(),
            help,
        })
    }

    fn missing_help(&self, needed: &[String], missing: &[String]) -> String {
        let is_block = |name: &String| name.starts_with(self.family.block_prefix);
        let block_count = |names: &[String]| names.iter().filter(|name| is_block(name)).count();
        let layer_of = |name: &String| self.layer_of(name);
        let stored_layers = self.shard_by_tensor.keys().filter_map(layer_of).max();
        if self.ignores_index {
            return "model.safetensors is read and model.safetensors.index.json is not, as in \
                    transformers; if the shards are the model, remove model.safetensors"
                .to_owned();
        }
        if self.config.raw.has(QUANTIZATION_KEY) {
            return format!(
                "config.json has a `{QUANTIZATION_KEY}`, and quantised checkpoints are not read; \
                 load the one that it was quantised from"
            );
        }
        if block_count(missing) == block_count(needed) {
            if let Some(prefix) = self.common_prefix(needed) {
                return format!(
                    "the names of the checkpoint's tensors begin with `{prefix}`; remove that from \
                     each of them, or save the model again from within what wraps it"
                );
            }
            if let Some(inner) = self.names_of_inner_model(needed) {
                return format!(
                    "the checkpoint was saved from the model without its output matrix: its \
                     tensors are named as `{inner}`; load it with AutoModelForCausalLM of \
                     transformers, and save it again"
                );
            }
            let first = self.shard_by_tensor.keys().next();
            return match first {
                Some(first) => format!(
                    "the checkpoint's tensors have other names, such as `{first}`; config.json's \
                     model_type, or the file, belongs to another kind of model"
                ),
                None => "the files hold no tensor".to_owned(),
            };
        }
        if missing == [self.family.tensor_name(TensorId::LmHead)] {
            return "write \"tie_word_embeddings\": true in config.json if the output matrix is \
                    the embedding"
                .to_owned();
        }
        if missing.iter().all(|name| layer_of(name) > stored_layers) {
            return format!(
                "config.json says {} = {}, and the checkpoint holds {} layers",
                self.family.keys.layers,
                self.config.layers,
                stored_layers.map_or(0, |layer| layer + 1)
            );
        }
        let bias_key = |name: &String| self.bias_of(name).and_then(|tensor| self.bias_key(tensor));
        match missing.first().and_then(bias_key) {
            Some(key) if missing.iter().all(|name| bias_key(name) == Some(key)) => {
                format!("config.json says {key} = true, which asks for these")
            }
            _ => String::new(),
        }
    }

    /// What stands before the name of every stored tensor that is needed, if all have it.
    fn common_prefix(&self, needed: &[String]) -> Option<&str> {
        let embedding = self.family.tensor_name(TensorId::Embedding);
        let stored = self
            .shard_by_tensor
            .keys()
            .find(|name| name.ends_with(&embedding))?;
        let prefix = stored.strip_suffix(&embedding)?;
        let is_stored = |name: &String| {
            let prefixed = format!("{prefix}{name}");
            self.shard_by_tensor.contains_key(&prefixed)
        };
        needed.iter().all(is_stored).then_some(prefix)
    }

    /// The embedding's name in a checkpoint that lacks the first part of every name, as the model
    /// without its output matrix is saved.
    fn names_of_inner_model(&self, needed: &[String]) -> Option<String> {
        let embedding = self.family.tensor_name(TensorId::Embedding);
        let (prefix, inner) = embedding.split_once('.')?;
        let mut of_inner = needed
            .iter()
            .filter_map(|name| name.strip_prefix(prefix)?.strip_prefix('.'));
        let is_inner = of_inner.all(|name| self.shard_by_tensor.contains_key(name));
        is_inner.then(|| inner.to_owned())
    }

    /// Of the stored tensors that are not needed, refuses those with a block's name, because the
    /// model would compute something else without them. Returns a warning about the others. Buffers
    /// and a second copy of a tied output matrix are ignored.
    pub(super) fn check_other_tensors(
        &self,
        needed: &[String],
    ) -> Result<Option<String>, CheckpointError> {
        let needed: BTreeSet<&str> = needed.iter().map(String::as_str).collect();
        let output_matrix = self.family.tensor_name(TensorId::LmHead);
        let ends_with = |name: &str, ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        let others: Vec<String> = self
            .shard_by_tensor
            .keys()
            .filter(|name| {
                !needed.contains(name.as_str())
                    && **name != output_matrix
                    && !ends_with(name, &BUFFERS)
                    && !ends_with(name, self.family.ignored_suffixes)
            })
            .cloned()
            .collect();
        let (in_blocks, outside): (Vec<String>, Vec<String>) =
            others.into_iter().partition(|name| {
                name.starts_with(self.family.block_prefix) && !ends_with(name, &CACHE_SCALES)
            });
        self.refuse_block_tensors(&in_blocks)?;
        Ok((!outside.is_empty()).then(|| {
            format!(
                "the checkpoint holds tensors that model_type = {} does not have, and that are \
                 neither used nor exported: {}",
                self.model_type(),
                self.list_names(&outside),
            )
        }))
    }

    fn refuse_block_tensors(&self, names: &[String]) -> Result<(), CheckpointError> {
        let Some(first) = names.first() else {
            return Ok(());
        };
        let layers = self.config.layers;
        let is_extra_layer = |name: &&String| self.layer_of(name).is_some_and(|at| at >= layers);
        let is_adapter = |name: &&String| ADAPTER_PARTS.iter().any(|part| name.contains(part));
        let adapter: Vec<String> = names.iter().filter(is_adapter).cloned().collect();
        if !adapter.is_empty() {
            return Err(CheckpointError::UnmergedAdapter {
                list: self.list_names(&adapter),
            });
        }
        if let Some(name) = names.iter().find(is_extra_layer) {
            return Err(CheckpointError::ExtraLayer {
                name: name.clone(),
                key: self.family.keys.layers,
                layers,
            });
        }
        let is_declarable = |name: &String| {
            let tensor = self.bias_of(name)?;
            Some((tensor, self.bias_key(tensor)?))
        };
        let biases: Vec<(BlockTensor, &str)> = names.iter().filter_map(is_declarable).collect();
        if biases.len() == names.len() {
            let (_, key) = biases[0];
            return Err(CheckpointError::UndeclaredBias {
                list: self.list_names(names),
                key,
                help: self.bias_help(&biases),
            });
        }
        let unknown = names.iter().filter(|name| is_declarable(name).is_none());
        let unknown: Vec<String> = unknown.cloned().collect();
        let is_bias = first.ends_with(".bias");
        Err(CheckpointError::UnknownTensors {
            list: self.list_names(&unknown),
            model_type: self.model_type(),
            help: match is_bias {
                true => String::new(),
                false => "config.json's model_type may be that of another kind of model".to_owned(),
            },
        })
    }

    /// What to write for biases that the config does not declare: the keys, if all matrices of
    /// their rules have biases.
    fn bias_help(&self, biases: &[(BlockTensor, &'static str)]) -> String {
        let keys: BTreeSet<&str> = biases.iter().map(|(_, key)| *key).collect();
        let lacking: Vec<&str> = self
            .family
            .biases
            .iter()
            .filter(
                |rule| matches!(rule.when, BiasCondition::Key { key, .. } if keys.contains(key)),
            )
            .flat_map(|rule| rule.tensors)
            .filter(|tensor| biases.iter().all(|(found, _)| found != *tensor))
            .map(|&tensor| self.family.peft_module(tensor))
            .collect();
        let lines: Vec<String> = keys.iter().map(|key| format!("\"{key}\": true")).collect();
        let write = format!("write {} in config.json", lines.join(" and "));
        match lacking.is_empty() {
            true => write,
            false => format!(
                "{write}, which also asks for biases of {}; a model without those has another \
                 model_type",
                lacking.join(", ")
            ),
        }
    }

    /// The index of the block that a stored tensor belongs to.
    fn layer_of(&self, name: &str) -> Option<usize> {
        let (layer, _) = name
            .strip_prefix(self.family.block_prefix)?
            .split_once('.')?;
        layer.parse().ok()
    }

    /// The tensor of a block whose bias is stored under this name.
    fn bias_of(&self, name: &str) -> Option<BlockTensor> {
        let layer = self.layer_of(name)?;
        self.family
            .block_tensor_ids()
            .find(|&tensor| self.family.stored_bias_name(layer, tensor) == name)
    }

    /// The key of `config.json` that says whether this tensor has a bias.
    fn bias_key(&self, tensor: BlockTensor) -> Option<&'static str> {
        self.family.biases.iter().find_map(|rule| match rule.when {
            BiasCondition::Key { key, .. } if rule.tensors.contains(&tensor) => Some(key),
            _ => None,
        })
    }

    fn model_type(&self) -> String {
        let value = self.config.raw.values.get("model_type");
        value
            .and_then(|name| name.as_str())
            .unwrap_or_default()
            .to_owned()
    }

    /// A list of tensors: every name, or, if there are many, names that differ in their layer alone
    /// as one.
    fn list_names(&self, names: &[String]) -> String {
        const MAX_NAMES: usize = 16;
        let quoted = |name: &String| format!("`{name}`");
        if names.len() <= MAX_NAMES {
            return names.iter().map(quoted).collect::<Vec<_>>().join(", ");
        }
        // what follows the layer → the layers
        let mut layers_of_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut listed = Vec::new();
        for name in names {
            match self.layer_of(name) {
                None => listed.push(quoted(name)),
                Some(layer) => {
                    let after_prefix = &name[self.family.block_prefix.len()..];
                    let (_, rest) = after_prefix.split_once('.').unwrap_or_default();
                    layers_of_name.entry(rest).or_default().push(layer);
                }
            }
        }
        for (rest, mut layers) in layers_of_name {
            layers.sort_unstable();
            let prefix = self.family.block_prefix;
            listed.push(match layers[..] {
                [layer] => format!("`{prefix}{layer}.{rest}`"),
                _ => format!("`{prefix}N.{rest}` for N = {}", list_ranges(&layers)),
            });
        }
        listed.join(", ")
    }
}

/// Ascending numbers, consecutive ones as a range: `0-3, 7`.
fn list_ranges(numbers: &[usize]) -> String {
    let range = |run: &[usize]| match run {
        [first, .., last] => format!("{first}-{last}"),
        single => single.iter().map(usize::to_string).collect(),
    };
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(range);
    runs.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::list_ranges;

    #[test]
    fn consecutive_numbers_are_a_range() {
        assert_eq!(list_ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
    }
}
