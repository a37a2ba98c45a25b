//! Comparisons with the numbers of other programs. The numbers in `data/` are part of the
//! repository, so their tests always run; the larger sets are shared material, which a test
//! declares in `needs`.

use crate::support::harness::Need::{self, Shared};

mod evaluation;
mod families;
mod formula;
mod generation;
mod model;
mod perplexity;
mod pipelines;
mod pruning;
mod recovery;
mod sizes;
mod task_documents;

/// Two models with the results of LLM-Pruner (commit 128a07d) on them: gradients, scores of
/// channels and members, pruned units, perplexities; and the scores of the paper's equations in
/// float64.
const LLM_PRUNER: [Need; 10] = [
    Shared("models/stories260K"),
    Shared("golden/prune_stories260K.json"),
    Shared("golden/prune_stories260K_grads.safetensors"),
    Shared("golden/prune_stories260K_members.safetensors"),
    Shared("golden/paper_stories260K.json"),
    Shared("models/mha_tiny"),
    Shared("golden/prune_mha_tiny.json"),
    Shared("golden/prune_mha_tiny_grads.safetensors"),
    Shared("golden/prune_mha_tiny_members.safetensors"),
    Shared("golden/paper_mha_tiny.json"),
];
