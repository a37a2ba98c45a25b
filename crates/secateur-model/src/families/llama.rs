//! LLaMA (Touvron et al. 2023), Mistral without a sliding window, and Granite with multipliers that
//! change nothing: RMS norms, rotary positions, grouped-query attention, an MLP gated by SiLU.

use crate::family::{
    BiasCondition, BiasRule, ConfigKeys, Constant, Family, MlpKind, ModelClass, NormKind,
    Positions, Residual, ResidualRule, RotaryShare, SlidingWindowKeys, TensorSpec, embedding,
    linear, norm,
};
use crate::wiring::BlockTensor::{Down, Gate, InputNorm, K, O, PostAttentionNorm, Q, Up, V};
use crate::wiring::ChannelSpace::{Heads, Hidden, Mlp, Vocabulary};
use crate::wiring::{BlockTensor, TensorId};

pub(super) static LLAMA: Family = Family {
    // In the order in which an export tries them. LlamaConfig requires `hidden_size` to be a
    // multiple of the query heads. Mistral does not, but has no biases. Granite has both.
    classes: &[
        LLAMA_CLASS,
        ModelClass {
            architecture: "MistralForCausalLM",
            model_type: "mistral",
            requires_divisible_width: false,
            biases: &[],
            constants: &[("sliding_window", Constant::Null)],
        },
        GRANITE_CLASS,
    ],
    fallback_classes: &[],
    keys: ConfigKeys {
        sliding_window: Some(SlidingWindowKeys {
            size: "sliding_window",
            enabled_by: None,
        }),
        ..ConfigKeys::COMMON
    },
    outer_tensors: OUTER_TENSORS,
    block_prefix: "model.layers.",
    block_tensors: BLOCK_TENSORS,
    fused: &[],
    biases: BIASES,
    norm: NormKind::Rms,
    positions: POSITIONS,
    residual: ResidualRule::Always(Residual::Sequential),
    mlp: MlpKind::GatedSilu,
    attention_order: ATTENTION_ORDER,
    ignored_suffixes: &[],
};

pub(super) const LLAMA_CLASS: ModelClass = ModelClass {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    requires_divisible_width: true,
    biases: BIASES,
    constants: &[],
};

pub(super) const GRANITE_CLASS: ModelClass = ModelClass {
    architecture: "GraniteForCausalLM",
    model_type: "granite",
    requires_divisible_width: false,
    biases: BIASES,
    constants: &[
        ("embedding_multiplier", Constant::One),
        ("residual_multiplier", Constant::One),
        ("logits_scaling", Constant::One),
        ("attention_multiplier", Constant::InverseRootOfHeadDim),
    ],
};

const BIASES: &[BiasRule] = &[
    BiasRule {
        tensors: &[Q, K, V, O],
        when: BiasCondition::Key {
            key: "attention_bias",
            default: false,
        },
    },
    BiasRule {
        tensors: &[Gate, Up, Down],
        when: BiasCondition::Key {
            key: "mlp_bias",
            default: false,
        },
    },
];

pub(super) const OUTER_TENSORS: &[TensorSpec<TensorId>] = &[
    embedding("model.embed_tokens"),
    norm(TensorId::FinalNorm, "model.norm"),
    linear(TensorId::LmHead, "lm_head", Hidden, Vocabulary),
];

pub(super) const BLOCK_TENSORS: &[TensorSpec<BlockTensor>] = &[
    norm(InputNorm, "input_layernorm"),
    linear(Q, "self_attn.q_proj", Hidden, Heads),
    linear(K, "self_attn.k_proj", Hidden, Heads),
    linear(V, "self_attn.v_proj", Hidden, Heads),
    linear(O, "self_attn.o_proj", Heads, Hidden),
    norm(PostAttentionNorm, "post_attention_layernorm"),
    linear(Gate, "mlp.gate_proj", Hidden, Mlp),
    linear(Up, "mlp.up_proj", Hidden, Mlp),
    linear(Down, "mlp.down_proj", Mlp, Hidden),
];

pub(super) const POSITIONS: Positions = Positions::RotaryHalves {
    base_keys: &["rope_theta"],
    share: RotaryShare::Whole,
};

/// The root of LLM-Pruner's attention group is q_proj, or k_proj where query heads share key/value
/// heads.
pub(super) const ATTENTION_ORDER: [&[BlockTensor]; 2] = [&[Q, O, V, K], &[K, O, V, Q]];
