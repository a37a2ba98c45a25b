//! Random streams. One seed per run; every stream is derived from it by name, so that adding a stage, a variant or a
//! thread moves no other stream.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// A seed from which further seeds and streams are derived by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed([u8; 32]);

impl Seed {
    /// The root seed of a run.
    pub fn from_u64(seed: u64) -> Self {
        Self(*blake3::hash(&seed.to_le_bytes()).as_bytes())
    }

    /// The seed of one stage of a run: the how-manieth of its type, from 0.
    pub fn for_stage(run: u64, tag: &str, occurrence: u32) -> Self {
        Self::from_u64(run).derive(&format!("{tag} {occurrence}"))
    }

    /// The seed of a part: a stage (`importance 0`), a purpose (`windows`), a step.
    pub fn derive(&self, name: &str) -> Self {
        Self(*blake3::keyed_hash(&self.0, name.as_bytes()).as_bytes())
    }

    /// The stream of this seed.
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
