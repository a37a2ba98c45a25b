//! Rows without end, for training: in file order, or shuffled anew for every pass and cut to random windows.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::corpus::TokenRow;
use secateur_base::random::Seed;

/// Hands out the rows of a corpus, pass after pass. Every row and window predicts something.
pub struct RowSampler {
    rows: Vec<TokenRow>,
    order: Vec<usize>,
    position: usize,
    /// The longest window, and the stream that shuffles and cuts. None: rows whole, in file order.
    window_sampling: Option<(usize, ChaCha8Rng)>,
}

impl RowSampler {
    /// Rows that predict nothing are left out; None if none is left. `random`: length of the windows, seed.
    pub fn new(mut rows: Vec<TokenRow>, random: Option<(usize, Seed)>) -> Option<Self> {
        rows.retain(TokenRow::has_loss_targets);
        let order: Vec<usize> = (0..rows.len()).collect();
        (!rows.is_empty()).then(|| Self {
            position: order.len(),
            rows,
            order,
            window_sampling: random.map(|(length, seed)| (length, seed.rng())),
        })
    }

    /// Rows of one pass.
    pub fn rows_per_pass(&self) -> usize {
        self.rows.len()
    }

    /// Passes over rows, as if they had been drawn.
    pub fn skip(&mut self, rows: usize) {
        (0..rows).for_each(|_| drop(self.next_row()));
    }

    /// The next row.
    pub fn next_row(&mut self) -> TokenRow {
        if self.position == self.order.len() {
            self.position = 0;
            if let Some((_, stream)) = &mut self.window_sampling {
                self.order.shuffle(stream);
            }
        }
        let row = &self.rows[self.order[self.position]];
        self.position += 1;
        match &mut self.window_sampling {
            Some((length, stream)) if row.ids.len() > *length => {
                // a row that predicts has a window that does
                loop {
                    let window =
                        row.window(stream.random_range(0..=row.ids.len() - *length), *length);
                    if window.has_loss_targets() {
                        break window;
                    }
                }
            }
            _ => row.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(lengths: &[usize]) -> Vec<TokenRow> {
        lengths
            .iter()
            .enumerate()
            .map(|(i, &n)| TokenRow {
                ids: (0..n as u32).map(|t| t + 100 * i as u32).collect(),
                loss_mask: vec![true; n],
            })
            .collect()
    }

    #[test]
    fn file_order_repeats() {
        let mut feed = RowSampler::new(rows(&[3, 1, 2]), None).expect("two rows predict");
        let firsts: Vec<u32> = (0..5).map(|_| feed.next_row().ids[0]).collect();
        assert_eq!(
            (feed.rows_per_pass(), firsts),
            (2, vec![0, 200, 0, 200, 0]),
            "a row of one token predicts nothing"
        );
    }

    #[test]
    fn a_random_pass_sees_every_row_once_and_cuts_windows() {
        let mut feed =
            RowSampler::new(rows(&[9, 4, 5, 7]), Some((5, Seed::from_u64(1)))).expect("rows");
        let pass: Vec<TokenRow> = (0..4).map(|_| feed.next_row()).collect();
        let mut seen: Vec<u32> = pass.iter().map(|row| row.ids[0] / 100).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3]);
        assert!(
            pass.iter()
                .all(|row| row.ids.len() <= 5 && row.ids.windows(2).all(|w| w[1] == w[0] + 1))
        );
    }
}
