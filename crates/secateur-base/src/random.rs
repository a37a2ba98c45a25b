//! Random streams that are derived from one seed by name.
//!
//! Every stream of a run comes from the run's seed and the names of its stage and purpose. The
//! streams are independent, so adding a stage, a variant or a thread changes no other stream.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// A seed of 256 bits. Further seeds are derived from it by name:
/// `derived = BLAKE3(key = seed, message = name)`.
///
/// ```
/// use rand::Rng;
/// use secateur_base::random::Seed;
///
/// let stage = Seed::for_stage(42, "importance", 0);
/// let mut windows = stage.derive("windows").rng();
/// let mut same_windows = stage.derive("windows").rng();
/// assert_eq!(windows.next_u64(), same_windows.next_u64());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed([u8; 32]);

impl Seed {
    /// The root seed of a run, from the number in its pipeline.
    pub fn from_u64(seed: u64) -> Self {
        Self(*blake3::hash(&seed.to_le_bytes()).as_bytes())
    }

    /// The seed of one stage of a run. `occurrence` is its index among the stages of this type,
    /// from 0.
    pub fn for_stage(run_seed: u64, stage_type: &str, occurrence: u32) -> Self {
        Self::from_u64(run_seed).derive(&format!("{stage_type} {occurrence}"))
    }

    /// The seed for a named part: a stage (`importance 0`), a purpose (`windows`), a step.
    pub fn derive(&self, name: &str) -> Self {
        Self(*blake3::keyed_hash(&self.0, name.as_bytes()).as_bytes())
    }

    /// A generator at the start of this seed's stream. ChaCha with 8 rounds gives the same numbers
    /// on every platform.
    pub fn rng(&self) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_differ_by_name_and_repeat_by_seed() {
        let draw = |seed: u64, name: &str| Seed::from_u64(seed).derive(name).rng().next_u64();
        assert_eq!(draw(42, "dropout"), draw(42, "dropout"));
        assert_ne!(draw(42, "dropout"), draw(42, "windows"));
        assert_ne!(draw(42, "dropout"), draw(43, "dropout"));
    }
}
