//! GPT-NeoX (Black et al. 2022) and Pythia: LayerNorms, one stored matrix for queries, keys and
//! values, rotary positions on a share of the head, attention and MLP computed from the same
//! residual state, an ungated GELU MLP.

use crate::family::{
    BiasCondition, BiasRule, ConfigKeys, Family, FusedModule, FusedRows, MlpKind, ModelClass,
    NormKind, Positions, ResidualRule, RotaryShare, embedding, linear, norm,
};
use crate::wiring::BlockTensor::{Down, InputNorm, K, O, PostAttentionNorm, Q, Up, V};
use crate::wiring::ChannelSpace::{Heads, Hidden, Mlp, Vocabulary};
use crate::wiring::TensorId;

pub(super) static GPT_NEOX: Family = Family {
    classes: &[ModelClass {
        architecture: "GPTNeoXForCausalLM",
        model_type: "gpt_neox",
        requires_divisible_width: true,
        biases: BIASES,
        constants: &[],
    }],
    fallback_classes: &[],
    keys: ConfigKeys {
        key_value_heads: None,
        norm_epsilon: ("layer_norm_eps", 1e-5),
        activation: ("hidden_act", "gelu"),
        ..ConfigKeys::COMMON
    },
    outer_tensors: &[
        embedding("gpt_neox.embed_in"),
        norm(TensorId::FinalNorm, "gpt_neox.final_layer_norm"),
        linear(TensorId::LmHead, "embed_out", Hidden, Vocabulary),
    ],
    block_prefix: "gpt_neox.layers.",
    block_tensors: &[
        norm(InputNorm, "input_layernorm"),
        linear(Q, "attention.query_key_value.q", Hidden, Heads),
        linear(K, "attention.query_key_value.k", Hidden, Heads),
        linear(V, "attention.query_key_value.v", Hidden, Heads),
        linear(O, "attention.dense", Heads, Hidden),
        norm(PostAttentionNorm, "post_attention_layernorm"),
        linear(Up, "mlp.dense_h_to_4h", Hidden, Mlp),
        linear(Down, "mlp.dense_4h_to_h", Mlp, Hidden),
    ],
    fused: &[FusedModule {
        module: "attention.query_key_value",
        parts: &[Q, K, V],
        rows: FusedRows::HeadsInterleaved,
    }],
    biases: BIASES,
    norm: NormKind::Layer,
    positions: Positions::RotaryHalves {
        base_keys: &["rotary_emb_base", "rope_theta"],
        share: RotaryShare::Keys {
            keys: &["rotary_pct", "partial_rotary_factor"],
            default: 0.25,
        },
    },
    residual: ResidualRule::ParallelIf {
        key: "use_parallel_residual",
        default: true,
    },
    mlp: MlpKind::ExactGelu,
    // The order of LLM-Pruner's groups for BLOOM, which has the same matrices: the fused one is the
    // root.
    attention_order: [&[Q, K, V, O], &[Q, K, V, O]],
    ignored_suffixes: &["attention.bias"],
};

const BIASES: &[BiasRule] = &[
    BiasRule {
        tensors: &[Q, K, V, O],
        when: BiasCondition::Key {
            key: "attention_bias",
            default: true,
        },
    },
    BiasRule {
        tensors: &[Up, Down],
        when: BiasCondition::Always,
    },
];
