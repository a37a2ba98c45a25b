//! An endless sequence of training rows: in file order, or shuffled for every pass and cut to
//! random windows.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::corpus::TokenRow;
use secateur_base::random::Seed;

/// Returns the rows of a corpus, pass after pass. In every row, and in every window of it, at least
/// one prediction counts in the loss.
pub struct RowSampler {
    rows: Vec<TokenRow>,
    /// Indices into `rows` in the order of the current pass.
    order: Vec<usize>,
    /// Index into `order` of the next row. Equal to its length at the end of a pass.
    position: usize,
    /// `None`: rows are returned whole, in file order.
    window_sampling: Option<WindowSampling>,
}

/// Shuffled rows, cut to random windows.
struct WindowSampling {
    /// Longer rows are cut to a window of this many tokens.
    length: usize,
    /// Shuffles the rows of every pass and draws the windows.
    rng: ChaCha8Rng,
}

impl RowSampler {
    /// Leaves out rows in which no prediction counts. Returns `None` if no row remains. `random` is
    /// the length of the windows and the seed of the draw; without it rows come whole, in file
    /// order.
    pub fn new(mut rows: Vec<TokenRow>, random: Option<(usize, Seed)>) -> Option<Self> {
        rows.retain(TokenRow::has_loss_targets);
        if rows.is_empty() {
            return None;
        }
        let order: Vec<usize> = (0..rows.len()).collect();
        let window_sampling = random.map(|(length, seed)| WindowSampling {
            length,
            rng: seed.rng(),
        });
        Some(Self {
            // The end of a pass: the first call of `next_row` begins one.
            position: order.len(),
            rows,
            order,
            window_sampling,
        })
    }

    /// The number of rows in one pass.
    pub fn rows_per_pass(&self) -> usize {
        self.rows.len()
    }

    /// Skips rows. A resumed training continues with the rows that it would have had.
    pub fn skip(&mut self, count: usize) {
        for _ in 0..count {
            // Drawing the row advances the random generator as training on it did.
            drop(self.next_row());
        }
    }

    /// Returns the next row.
    pub fn next_row(&mut self) -> TokenRow {
        if self.position == self.order.len() {
            self.position = 0;
            if let Some(sampling) = &mut self.window_sampling {
                self.order.shuffle(&mut sampling.rng);
            }
        }
        let row = &self.rows[self.order[self.position]];
        self.position += 1;
        match &mut self.window_sampling {
            Some(sampling) if row.ids.len() > sampling.length => sampling.draw_window(row),
            _ => row.clone(),
        }
    }
}

impl WindowSampling {
    /// Draws windows of `row` until one has a prediction that counts. Ends with probability 1: the
    /// row has such a prediction, so some window contains it.
    fn draw_window(&mut self, row: &TokenRow) -> TokenRow {
        let last_start = row.ids.len() - self.length;
        loop {
            let start = self.rng.random_range(0..=last_start);
            let window = row.window(start, self.length);
            if window.has_loss_targets() {
                return window;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of these lengths; the ids of row `i` are `100 * i`, `100 * i + 1`, ….
    fn numbered_rows(lengths: &[usize]) -> Vec<TokenRow> {
        let numbered_row = |(i, &length): (usize, &usize)| TokenRow {
            ids: (0..length as u32)
                .map(|token| token + 100 * i as u32)
                .collect(),
            loss_mask: vec![true; length],
        };
        lengths.iter().enumerate().map(numbered_row).collect()
    }

    #[test]
    fn file_order_repeats() {
        let mut sampler =
            RowSampler::new(numbered_rows(&[3, 1, 2]), None).expect("two rows remain");
        let first_ids: Vec<u32> = (0..5).map(|_| sampler.next_row().ids[0]).collect();
        assert_eq!(
            (sampler.rows_per_pass(), first_ids),
            (2, vec![0, 200, 0, 200, 0]),
            "a row of one token has no prediction"
        );
    }

    #[test]
    fn a_random_pass_has_every_row_once_and_cuts_windows() {
        let random = Some((5, Seed::from_u64(1)));
        let mut sampler = RowSampler::new(numbered_rows(&[9, 4, 5, 7]), random).expect("rows");
        let pass: Vec<TokenRow> = (0..4).map(|_| sampler.next_row()).collect();
        let mut row_numbers: Vec<u32> = pass.iter().map(|row| row.ids[0] / 100).collect();
        row_numbers.sort_unstable();
        assert_eq!(row_numbers, [0, 1, 2, 3]);
        for row in &pass {
            assert!(row.ids.len() <= 5);
            assert!(row.ids.windows(2).all(|pair| pair[1] == pair[0] + 1));
        }
    }
}
