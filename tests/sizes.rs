//! Sizes of the published models and prunings, from their shapes alone: LLM-Pruner's tables of parameters and of
//! multiply-accumulates over 64 tokens (NeurIPS 2023, Table 3, and the counts of its scripts).

use secateur::model::sizes::{BlockShape, Shape};
use secateur::stages::prune::units_that_stay;

fn uniform(hidden: usize, layers: usize, block: BlockShape, vocab: usize) -> Shape {
    Shape { hidden, head_dim: hidden / block.queries, vocab, tied: false, blocks: vec![block; layers] }
}

fn llama_7b() -> Shape {
    uniform(4096, 32, BlockShape { queries: 32, keys: 32, mlp: 11008 }, 32000)
}

/// Heads and MLP channels of layers [start, end) at a ratio.
fn blocks(mut shape: Shape, ratio: f64, [start, end]: [usize; 2]) -> Shape {
    for block in &mut shape.blocks[start..end] {
        let shared = block.queries / block.keys;
        block.keys = units_that_stay(block.keys, shape.head_dim, ratio);
        block.queries = shared * block.keys;
        block.mlp = units_that_stay(block.mlp, 1, ratio);
    }
    shape
}

/// Channels of the residual stream at a ratio.
fn channels(shape: Shape, ratio: f64) -> Shape {
    Shape { hidden: units_that_stay(shape.hidden, 1, ratio), ..shape }
}

/// Billions of multiply-accumulates over 64 tokens, to the third digit behind the point.
fn macs(shape: &Shape) -> String {
    format!("{:.3}", shape.macs(64) as f64 / 1e9)
}

#[test]
fn llama_7b_as_published() {
    let dense = llama_7b();
    assert_eq!((dense.parameters(), macs(&dense)), (6_738_415_616, "424.021".to_owned()));
    let twenty = blocks(dense.clone(), 0.25, [4, 30]);
    assert_eq!(twenty.blocks[4], BlockShape { queries: 24, keys: 24, mlp: 8256 });
    assert_eq!((twenty.parameters(), macs(&twenty)), (5_422_977_024, "339.603".to_owned()));
    let fifty = blocks(dense.clone(), 0.60, [3, 31]);
    assert_eq!(fifty.blocks[3], BlockShape { queries: 13, keys: 13, mlp: 4403 });
    assert_eq!((fifty.parameters(), macs(&fifty)), (3_350_188_032, "206.585".to_owned()));
    for (ratio, hidden, parameters, billions) in [(0.2, 3276, 5_389_416_396, "339.361"), (0.5, 2048, 3_369_207_808, "212.578")] {
        let channel = channels(dense.clone(), ratio);
        assert_eq!((channel.hidden, channel.parameters(), macs(&channel)), (hidden, parameters, billions.to_owned()));
    }
}

#[test]
fn llama_7b_at_every_ratio() {
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
        assert_eq!(blocks(llama_7b(), ratio, [4, 30]).parameters(), parameters, "{ratio}");
    }
    assert_eq!(blocks(llama_7b(), 0.6, [4, 31]).parameters(), 3_471_196_160);
}

#[test]
fn other_models_as_published() {
    let llama_13b = uniform(5120, 40, BlockShape { queries: 40, keys: 40, mlp: 13824 }, 32000);
    assert_eq!(llama_13b.parameters(), 13_015_864_320);
    let llama3_8b = uniform(4096, 32, BlockShape { queries: 32, keys: 8, mlp: 14336 }, 128_256);
    assert_eq!(llama3_8b.parameters(), 8_030_261_248);
    let pruned = blocks(llama3_8b, 0.25, [4, 30]);
    assert_eq!(pruned.blocks[4], BlockShape { queries: 24, keys: 6, mlp: 10752 });
    assert_eq!(pruned.parameters(), 6_612_586_496);
    let tinyllama = uniform(2048, 22, BlockShape { queries: 32, keys: 4, mlp: 5632 }, 32000);
    assert_eq!(tinyllama.parameters(), 1_100_048_384);
    let pruned = blocks(tinyllama, 0.25, [4, 18]);
    assert_eq!(pruned.blocks[4], BlockShape { queries: 24, keys: 3, mlp: 4224 });
    assert_eq!(pruned.parameters(), 945_907_712);
}
