//! Python's `random.Random(seed).sample`, number for number, so that the few-shot examples are
//! those that lm-evaluation-harness draws.
//!
//! Three parts of CPython have to be reproduced exactly:
//!
//! 1. The generator is the Mersenne Twister MT19937, seeded with `init_by_array`, whose array holds
//!    the 32-bit words of the integer seed (one word for a `u32`).
//! 2. `_randbelow(n)` takes the top `n.bit_length()` bits of a 32-bit output and draws again while
//!    the result is not below `n`.
//! 3. `sample` uses one of two algorithms, depending on the sizes, and they draw different numbers.

use std::collections::BTreeSet;

use rand_mt::Mt;

/// CPython's `random.Random`.
pub(crate) struct PythonRandom(Mt);

impl PythonRandom {
    /// `random.Random(seed)`.
    pub(crate) fn new(seed: u32) -> Self {
        Self(Mt::new_with_key([seed]))
    }

    /// `_randbelow(n)` for `n` above 0.
    fn random_below(&mut self, n: u32) -> u32 {
        let bit_length = u32::BITS - n.leading_zeros();
        loop {
            let number = self.0.next_u32() >> (u32::BITS - bit_length);
            if number < n {
                return number;
            }
        }
    }

    /// `sample(range(population), count)`: different numbers below `population`, in the order
    /// drawn. `None` if `population` is smaller than `count`.
    pub(crate) fn sample(&mut self, population: u32, count: u32) -> Option<Vec<u32>> {
        if count > population {
            return None;
        }
        // CPython estimates the size of a set of the drawn numbers (a small set, or a hash table
        // with a power of 4 of entries) and uses a list of the whole population if that is not
        // larger.
        let set_size = if count <= 5 {
            21
        } else {
            21 + 4_u64.pow((f64::from(count) * 3.0).log(4.0).ceil() as u32)
        };
        if u64::from(population) <= set_size {
            Some(self.sample_from_pool(population, count))
        } else {
            Some(self.sample_by_rejection(population, count))
        }
    }

    /// Draws from the list of the remaining numbers. The last remaining number takes the place of
    /// the drawn one, as in CPython.
    fn sample_from_pool(&mut self, population: u32, count: u32) -> Vec<u32> {
        let mut pool: Vec<u32> = (0..population).collect();
        let mut drawn = Vec::with_capacity(count as usize);
        for drawn_count in 0..count {
            let index = self.random_below(population - drawn_count);
            drawn.push(pool.swap_remove(index as usize));
        }
        drawn
    }

    /// Draws from the whole population and again if a number was already drawn.
    fn sample_by_rejection(&mut self, population: u32, count: u32) -> Vec<u32> {
        let mut seen = BTreeSet::new();
        let mut drawn = Vec::with_capacity(count as usize);
        while drawn.len() < count as usize {
            let number = self.random_below(population);
            if seen.insert(number) {
                drawn.push(number);
            }
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by CPython 3.11: seed, population, a sample, and the next sample of two.
    #[test]
    fn samples_are_those_of_python() {
        for (seed, population, first, second) in [
            (1234, 100, vec![99, 56, 14, 0, 11], vec![74, 4]),
            (42, 100, vec![81, 14, 3, 94, 35], vec![31, 28]),
            (
                1234,
                3270,
                vec![3187, 1805, 478, 30, 371, 2384],
                vec![143, 2750],
            ),
            (0, 21, vec![12, 13, 1, 8], vec![16, 15]),
            (7, 22, vec![10, 4, 12, 20, 1], vec![2, 17]),
            (1234, 85, vec![56, 14, 0, 11, 74, 4], vec![10, 12]),
            (1234, 86, vec![56, 14, 0, 11, 74, 4], vec![85, 10]),
            (
                42,
                2376,
                vec![
                    456, 102, 1126, 1003, 914, 571, 419, 2233, 356, 1728, 130, 122, 383, 895, 952,
                    2069, 108, 2298, 814, 2232, 1718, 902, 1839, 1139, 26, 653,
                ],
                vec![1731, 1393],
            ),
            (4294967295, 1000, vec![650, 634, 208], vec![220, 621]),
        ] {
            let mut random = PythonRandom::new(seed);
            let count = first.len() as u32;
            assert_eq!(
                random.sample(population, count),
                Some(first),
                "seed {seed}, {count} of {population}"
            );
            assert_eq!(
                random.sample(population, 2),
                Some(second),
                "seed {seed}, then 2 of {population}"
            );
        }
        assert_eq!(PythonRandom::new(1).sample(3, 4), None);
        assert_eq!(PythonRandom::new(1).sample(0, 0), Some(vec![]));
    }
}
