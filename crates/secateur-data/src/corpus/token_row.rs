//! A row of token ids with its loss mask.

/// A row of token ids, and which of them count in a loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    pub ids: Vec<u32>,
    /// Whether the prediction of `ids[i]` from the tokens before it counts. `loss_mask[0]` is never
    /// used, because nothing precedes the first token. Same length as `ids`.
    pub loss_mask: Vec<bool>,
}

impl TokenRow {
    /// The `length` tokens from `start` on, as a row of their own.
    pub(crate) fn window(&self, start: usize, length: usize) -> Self {
        let range = start..start + length;
        Self {
            ids: self.ids[range.clone()].to_vec(),
            loss_mask: self.loss_mask[range].to_vec(),
        }
    }

    /// Whether any prediction counts.
    pub(crate) fn has_loss_targets(&self) -> bool {
        self.loss_mask.iter().skip(1).any(|&counts| counts)
    }

    /// The starts of all windows of `length` tokens in which at least one prediction counts.
    pub(crate) fn window_starts(&self, length: usize) -> Vec<usize> {
        // The first token of a window has nothing before it, so the mask is read from the second
        // on.
        let has_target = |start: &usize| self.loss_mask[start + 1..start + length].contains(&true);
        let window_count = (self.ids.len() + 1).saturating_sub(length);
        (0..window_count).filter(has_target).collect()
    }
}
