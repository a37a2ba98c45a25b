//! Facts about earlier stages, so that the options of different stages can be checked against each
//! other although no stage depends on the type of another.

use super::products::Compat;
use super::values::ValueKind;

/// Facts that earlier stages have recorded (`Stage::state_facts`). The check of the order calls the
/// stages one after the other.
#[derive(Clone, Debug)]
pub struct EarlierStages {
    /// Whether the groups are attention heads and MLP channels of single layers. True until a stage
    /// records otherwise.
    pub has_block_groups: bool,
    /// Whether the groups are whole layers.
    pub has_layer_groups: bool,
    /// The facts of the last `importance` stage; None if there was none, or if it could not be
    /// decoded.
    pub importance: Option<ImportanceFacts>,
}

/// Facts of an `importance` stage about its scores.
#[derive(Clone, Copy, Debug)]
pub struct ImportanceFacts {
    pub method: &'static str,
    pub compat: Compat,
    /// Whether only the member that writes back to the residual stream has scores.
    pub scores_output_member_only: bool,
    /// Whether the mean of every matrix input is recorded with the scores.
    pub has_input_means: bool,
}

impl Default for EarlierStages {
    fn default() -> Self {
        Self {
            has_block_groups: true,
            has_layer_groups: false,
            importance: None,
        }
    }
}

impl EarlierStages {
    /// Drops the facts about values of these kinds: a stage that makes them could not be decoded.
    /// Without a fact a later stage reports no mistake.
    pub fn forget(&mut self, kinds: &[ValueKind]) {
        if kinds.contains(&ValueKind::Graph) {
            self.has_block_groups = true;
            self.has_layer_groups = false;
        }
        if kinds.contains(&ValueKind::Scores) {
            self.importance = None;
        }
    }
}
