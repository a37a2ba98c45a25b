//! Qwen2 (Yang et al. 2024) without a sliding window: LLaMA with biases on queries, keys and
//! values.

use super::llama;
use crate::family::{
    BiasCondition, BiasRule, ConfigKeys, Family, MlpKind, ModelClass, NormKind, Residual,
    ResidualRule, SlidingWindowKeys,
};
use crate::wiring::BlockTensor::{K, Q, V};

pub(super) static QWEN2: Family = Family {
    classes: &[ModelClass {
        architecture: "Qwen2ForCausalLM",
        model_type: "qwen2",
        requires_divisible_width: false,
        biases: BIASES,
        constants: &[],
    }],
    // Pruning can add biases to the output matrices of attention and MLP. Qwen2ForCausalLM has no
    // such biases, LlamaForCausalLM and GraniteForCausalLM have.
    fallback_classes: &[llama::LLAMA_CLASS, llama::GRANITE_CLASS],
    keys: ConfigKeys {
        max_positions: ("max_position_embeddings", 32_768),
        sliding_window: Some(SlidingWindowKeys {
            size: "sliding_window",
            enabled_by: Some("use_sliding_window"),
        }),
        ..ConfigKeys::COMMON
    },
    outer_tensors: llama::OUTER_TENSORS,
    block_prefix: "model.layers.",
    block_tensors: llama::BLOCK_TENSORS,
    fused: &[],
    biases: BIASES,
    norm: NormKind::Rms,
    positions: llama::POSITIONS,
    residual: ResidualRule::Always(Residual::Sequential),
    mlp: MlpKind::GatedSilu,
    attention_order: llama::ATTENTION_ORDER,
    ignored_suffixes: &[],
};

const BIASES: &[BiasRule] = &[BiasRule {
    tensors: &[Q, K, V],
    when: BiasCondition::Always,
}];
