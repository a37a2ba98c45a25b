//! Shards: the parts of a sweep that several machines take.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::plan::Variant;
use crate::plan::ids::PerVariant;
use crate::plan::tree::build_tree;

/// One of several machines that share the variants. The sizes of the shards differ by at most one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    assignment: Assignment,
    /// 1 to `count`.
    number: usize,
    count: usize,
}

/// How the variants are distributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Assignment {
    /// `K/N`: by the hash of a variant's options. Most variants stay in their shard when others are
    /// added to the sweep.
    Hash,
    /// `slice:K/N`: contiguous parts of the tree of stages, so that variants with the same
    /// beginning are together as far as the sizes allow.
    Slice,
}

const SLICE_PREFIX: &str = "slice:";

/// The largest number of shards: memory and time of the assignment grow with it.
const MAX_SHARDS: usize = 1 << 16;

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (assignment, part) = match text.strip_prefix(SLICE_PREFIX) {
            Some(part) => (Assignment::Slice, part),
            None => (Assignment::Hash, text),
        };
        let (number, count) = part
            .split_once('/')
            .and_then(|(number, count)| Some((number.parse().ok()?, count.parse().ok()?)))
            .unwrap_or((0, 0));
        if count > MAX_SHARDS {
            return Err(format!("there are at most {MAX_SHARDS} shards"));
        }
        if (1..=count).contains(&number) {
            Ok(Self {
                assignment,
                number,
                count,
            })
        } else {
            Err("a shard is K/N or slice:K/N, such as 1/4: the first of four".to_owned())
        }
    }
}

/// As it is written on the command line.
impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.assignment {
            Assignment::Hash => "",
            Assignment::Slice => SLICE_PREFIX,
        };
        write!(formatter, "{prefix}{}/{}", self.number, self.count)
    }
}

impl Shard {
    /// The other shards of the same distribution, with this one.
    pub(crate) fn all(self) -> impl Iterator<Item = Self> {
        (1..=self.count).map(move |number| Self { number, ..self })
    }

    /// The indices of this shard's variants.
    pub(super) fn select(self, variants: &[&Variant]) -> BTreeSet<usize> {
        match self.assignment {
            Assignment::Hash => {
                let hashes: Vec<u64> = variants
                    .iter()
                    .map(|variant| hash_number(variant))
                    .collect();
                let shards = distribute_by_hash(&hashes, self.count);
                let own = shards.iter().enumerate();
                own.filter(|&(_, &shard)| shard == self.number - 1)
                    .map(|(index, _)| index)
                    .collect()
            }
            Assignment::Slice => {
                let order = tree_order(variants);
                let slice = slice(order.len(), self.number - 1, self.count);
                order[slice].iter().copied().collect()
            }
        }
    }
}

/// The first eight bytes of a variant's hash, as a number.
fn hash_number(variant: &Variant) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = variant.hash;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The shard of each item, from 0. The remainder of its hash decides; a shard that has more items
/// than its part gives those with the highest hashes to the shards that have fewer.
fn distribute_by_hash(hashes: &[u64], shard_count: usize) -> Vec<usize> {
    // A remainder is below the number of shards, so it fits `usize`.
    let preferred = |hash: u64| (hash % shard_count as u64) as usize;
    let mut counts = vec![0usize; shard_count];
    for &hash in hashes {
        counts[preferred(hash)] += 1;
    }
    // The shards that most items prefer get the items that are left over by the division.
    let mut by_count: Vec<usize> = (0..shard_count).collect();
    by_count.sort_by_key(|&shard| Reverse(counts[shard]));
    let mut free_places = vec![hashes.len() / shard_count; shard_count];
    for &shard in &by_count[..hashes.len() % shard_count] {
        free_places[shard] += 1;
    }
    let mut by_hash: Vec<usize> = (0..hashes.len()).collect();
    by_hash.sort_by_key(|&index| hashes[index]);
    let mut shards = vec![None; hashes.len()];
    for &index in &by_hash {
        let shard = preferred(hashes[index]);
        if free_places[shard] > 0 {
            free_places[shard] -= 1;
            shards[index] = Some(shard);
        }
    }
    let mut places = free_places
        .into_iter()
        .enumerate()
        .flat_map(|(shard, free)| std::iter::repeat_n(shard, free));
    for &index in &by_hash {
        if shards[index].is_none() {
            shards[index] = places.next();
        }
    }
    // There are as many places as items, so every item has a shard.
    shards.into_iter().flatten().collect()
}

/// The indices of the variants in the order of the leaves of the tree of stages.
fn tree_order(variants: &[&Variant]) -> Vec<usize> {
    let mut with_nodes: PerVariant<Variant> =
        variants.iter().map(|&variant| variant.clone()).collect();
    build_tree(&mut with_nodes);
    let paths: Vec<_> = with_nodes.iter().map(|variant| &variant.nodes).collect();
    let mut order: Vec<usize> = (0..variants.len()).collect();
    // A node has a lower id than the nodes that the sweep reaches after it.
    order.sort_by_key(|&index| paths[index]);
    order
}

/// The part `index` of `part_count` contiguous parts of `length` items.
fn slice(length: usize, index: usize, part_count: usize) -> Range<usize> {
    let (size, remainder) = (length / part_count, length % part_count);
    let start_of = |part: usize| part * size + part.min(remainder);
    start_of(index)..start_of(index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_has_a_number_and_a_count() {
        for right in ["2/3", "1/1", "slice:3/3"] {
            let shard: Shard = right.parse().expect(right);
            assert_eq!(shard.to_string(), right);
        }
        let wrong = [
            "0/3",
            "4/3",
            "1",
            "1/",
            "/2",
            "a/b",
            "1/0",
            "1/99999999999",
            "-1/2",
            "slice:",
            "slice:0/1",
            "cut:1/2",
        ];
        for wrong in wrong {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    /// Hashes that look random: the outputs of splitmix64.
    fn hashes(count: u64) -> Vec<u64> {
        let mix = |n: u64| {
            let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            n ^ (n >> 31)
        };
        (1..=count)
            .map(|n| mix(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .collect()
    }

    fn sizes(shards: &[usize], shard_count: usize) -> Vec<usize> {
        (0..shard_count)
            .map(|shard| shards.iter().filter(|&&other| other == shard).count())
            .collect()
    }

    #[test]
    fn shards_differ_by_at_most_one_variant() {
        for (count, shard_count) in [(0, 3), (1, 3), (2, 3), (10, 3), (10, 4), (97, 8)] {
            let shards = distribute_by_hash(&hashes(count), shard_count);
            assert_eq!(shards.len() as u64, count);
            let hash_sizes = sizes(&shards, shard_count);
            let slice_sizes: Vec<usize> = (0..shard_count)
                .map(|index| slice(shards.len(), index, shard_count).len())
                .collect();
            for sizes in [hash_sizes, slice_sizes] {
                assert_eq!(sizes.iter().sum::<usize>() as u64, count);
                let (least, most) = (sizes.iter().min(), sizes.iter().max());
                assert!(
                    most.zip(least)
                        .is_some_and(|(most, least)| most - least <= 1),
                    "{count} variants, {shard_count} shards: {sizes:?}"
                );
            }
        }
    }

    #[test]
    fn most_variants_keep_their_shard_when_others_are_added() {
        let few = distribute_by_hash(&hashes(40), 4);
        let many = distribute_by_hash(&hashes(44), 4);
        let moved = few.iter().zip(&many).filter(|(few, many)| few != many);
        assert!(moved.count() <= 8);
    }
}
