//! Sizes of published models and prunings, from their shapes alone: LLM-Pruner's tables of
//! parameters and of multiply-accumulates over 64 tokens (NeurIPS 2023, Table 3, and the counts of
//! its scripts).

use secateur::stages::prune::remaining_units;
use secateur_model::cost::ModelShape;
use secateur_model::families;
use secateur_model::family::BlockShape;

fn uniform(hidden: usize, layers: usize, block: BlockShape, vocab: usize) -> ModelShape {
    let head_dim = hidden / block.query_heads;
    ModelShape {
        family: families::default_family(),
        hidden,
        head_dim,
        rotated_dimensions: head_dim,
        vocab,
        tied_embeddings: false,
        blocks: vec![block; layers],
        bias_elements: 0,
    }
}

fn llama_7b() -> ModelShape {
    uniform(
        4096,
        32,
        BlockShape {
            query_heads: 32,
            key_value_heads: 32,
            mlp_channels: 11008,
        },
        32000,
    )
}

/// The shape after pruning heads and MLP channels of the layers [start, end) by a ratio.
fn prune_blocks(mut shape: ModelShape, ratio: f64, [start, end]: [usize; 2]) -> ModelShape {
    for block in &mut shape.blocks[start..end] {
        let shared = block.query_heads / block.key_value_heads;
        block.key_value_heads = remaining_units(block.key_value_heads, shape.head_dim, ratio);
        block.query_heads = shared * block.key_value_heads;
        block.mlp_channels = remaining_units(block.mlp_channels, 1, ratio);
    }
    shape
}

/// The shape after pruning channels of the residual stream by a ratio.
fn prune_channels(shape: ModelShape, ratio: f64) -> ModelShape {
    ModelShape {
        hidden: remaining_units(shape.hidden, 1, ratio),
        ..shape
    }
}

/// Billions of multiply-accumulates over 64 tokens, with three decimals.
fn macs(shape: &ModelShape) -> String {
    format!("{:.3}", shape.macs(64) as f64 / 1e9)
}

test!(llama_7b_sizes_equal_the_publication);
fn llama_7b_sizes_equal_the_publication() {
    let dense = llama_7b();
    assert_eq!(
        (dense.parameter_count(), macs(&dense)),
        (6_738_415_616, "424.021".to_owned())
    );
    let pruned_by_20_percent = prune_blocks(dense.clone(), 0.25, [4, 30]);
    assert_eq!(
        pruned_by_20_percent.blocks[4],
        BlockShape {
            query_heads: 24,
            key_value_heads: 24,
            mlp_channels: 8256
        }
    );
    assert_eq!(
        (
            pruned_by_20_percent.parameter_count(),
            macs(&pruned_by_20_percent)
        ),
        (5_422_977_024, "339.603".to_owned())
    );
    let pruned_by_50_percent = prune_blocks(dense.clone(), 0.60, [3, 31]);
    assert_eq!(
        pruned_by_50_percent.blocks[3],
        BlockShape {
            query_heads: 13,
            key_value_heads: 13,
            mlp_channels: 4403
        }
    );
    assert_eq!(
        (
            pruned_by_50_percent.parameter_count(),
            macs(&pruned_by_50_percent)
        ),
        (3_350_188_032, "206.585".to_owned())
    );
    for (ratio, hidden, parameters, billions) in [
        (0.2, 3276, 5_389_416_396, "339.361"),
        (0.5, 2048, 3_369_207_808, "212.578"),
    ] {
        let channel = prune_channels(dense.clone(), ratio);
        assert_eq!(
            (channel.hidden, channel.parameter_count(), macs(&channel)),
            (hidden, parameters, billions.to_owned())
        );
    }
}

test!(llama_7b_sizes_at_every_ratio);
fn llama_7b_sizes_at_every_ratio() {
    let counts: [(f64, u64); 9] = [
        (0.05, 6_507_851_776),
        (0.1, 6_223_081_472),
        (0.15, 5_992_517_632),
        (0.2, 5_707_747_328),
        (0.3, 5_192_413_184),
        (0.4, 4_677_079_040),
        (0.5, 4_107_538_432),
        (0.6, 3_592_204_288),
        (0.7, 3_076_870_144),
    ];
    for (ratio, parameters) in counts {
        assert_eq!(
            prune_blocks(llama_7b(), ratio, [4, 30]).parameter_count(),
            parameters,
            "{ratio}"
        );
    }
    assert_eq!(
        prune_blocks(llama_7b(), 0.6, [4, 31]).parameter_count(),
        3_471_196_160
    );
}

test!(other_model_sizes_equal_the_publications);
fn other_model_sizes_equal_the_publications() {
    let llama_13b = uniform(
        5120,
        40,
        BlockShape {
            query_heads: 40,
            key_value_heads: 40,
            mlp_channels: 13824,
        },
        32000,
    );
    assert_eq!(llama_13b.parameter_count(), 13_015_864_320);
    let llama3_8b = uniform(
        4096,
        32,
        BlockShape {
            query_heads: 32,
            key_value_heads: 8,
            mlp_channels: 14336,
        },
        128_256,
    );
    assert_eq!(llama3_8b.parameter_count(), 8_030_261_248);
    let pruned = prune_blocks(llama3_8b, 0.25, [4, 30]);
    assert_eq!(
        pruned.blocks[4],
        BlockShape {
            query_heads: 24,
            key_value_heads: 6,
            mlp_channels: 10752
        }
    );
    assert_eq!(pruned.parameter_count(), 6_612_586_496);
    let tinyllama = uniform(
        2048,
        22,
        BlockShape {
            query_heads: 32,
            key_value_heads: 4,
            mlp_channels: 5632,
        },
        32000,
    );
    assert_eq!(tinyllama.parameter_count(), 1_100_048_384);
    let pruned = prune_blocks(tinyllama, 0.25, [4, 18]);
    assert_eq!(
        pruned.blocks[4],
        BlockShape {
            query_heads: 24,
            key_value_heads: 3,
            mlp_channels: 4224
        }
    );
    assert_eq!(pruned.parameter_count(), 945_907_712);
}
