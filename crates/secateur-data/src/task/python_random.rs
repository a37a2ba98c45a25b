//! Python's `random.Random(seed).sample`, to the draw: few-shot examples are those that lm-evaluation-harness takes.

use std::collections::BTreeSet;

use rand_mt::Mt;

/// CPython's generator: the Mersenne Twister, seeded by the array of the seed's 32-bit words.
pub struct PythonRandom(Mt);

impl PythonRandom {
    pub fn new(seed: u32) -> Self {
        Self(Mt::new_with_key([seed]))
    }

    /// A number below `n`: as many bits as `n` has, drawn again while they are too large.
    fn random_below(&mut self, n: u32) -> u32 {
        let bits = u32::BITS - n.leading_zeros();
        loop {
            let drawn = self.0.next_u32() >> (u32::BITS - bits);
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `count` different numbers below `population`, in the order drawn; None if there are not so many.
    pub fn sample(&mut self, population: u32, count: u32) -> Option<Vec<u32>> {
        if count > population {
            return None;
        }
        // CPython's choice between a list of all and a set of those taken: which is smaller decides the draws.
        let table = match count {
            0..=5 => 21,
            _ => 21 + 4_u64.pow((f64::from(count) * 3.0).log(4.0).ceil() as u32),
        };
        if u64::from(population) <= table {
            Some(self.sample_from_pool(population, count))
        } else {
            Some(self.sample_by_rejection(population, count))
        }
    }

    fn sample_from_pool(&mut self, population: u32, count: u32) -> Vec<u32> {
        let mut pool: Vec<u32> = (0..population).collect();
        let draw = |left: u32| pool.swap_remove(self.random_below(left) as usize);
        (0..count)
            .map(|taken| population - taken)
            .map(draw)
            .collect()
    }

    fn sample_by_rejection(&mut self, population: u32, count: u32) -> Vec<u32> {
        let mut taken = BTreeSet::new();
        let mut drawn = Vec::with_capacity(count as usize);
        while drawn.len() < count as usize {
            let number = self.random_below(population);
            if taken.insert(number) {
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
                "{seed} {population} {count}"
            );
            assert_eq!(
                random.sample(population, 2),
                Some(second),
                "{seed} {population}, once more"
            );
        }
        assert_eq!(PythonRandom::new(1).sample(3, 4), None);
        assert_eq!(PythonRandom::new(1).sample(0, 0), Some(vec![]));
    }
}
