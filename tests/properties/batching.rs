//! The scores of a sequence do not depend on the rest of its pack, on shared prefixes, or on a KV
//! cache.

use secateur_base::random::Seed;
use secateur_model::walk::{self, Decoder, Sequence};
use secateur_tensor::ops::{TokenScore, TokenTarget};

use crate::support::tiny;

use proptest::prelude::*;
use rand::RngExt;

fn bits(scores: &[TokenScore]) -> Vec<(u64, bool)> {
    scores
        .iter()
        .map(|score| (score.log_probability.to_bits(), score.is_greedy))
        .collect()
}

/// Sequences of a few to a few hundred tokens. Many share a prefix with another one, some equal
/// another one or its beginning. Each has targets at its last three positions.
fn sequences(seed: u32, vocabulary: u32) -> Vec<Sequence> {
    let mut stream = Seed::from_u64(u64::from(seed)).rng();
    let mut all: Vec<Vec<u32>> = Vec::new();
    for _ in 0..24 {
        let mut ids = match all.len() {
            0 => Vec::new(),
            n => {
                let other = &all[stream.random_range(0..n)];
                other[..stream.random_range(0..=other.len())].to_vec()
            }
        };
        let longest = if stream.random_range(0..6) == 0 {
            400
        } else {
            30
        };
        let more = stream.random_range(usize::from(ids.is_empty())..longest);
        ids.extend((0..more).map(|_| stream.random_range(0..vocabulary)));
        all.push(ids);
    }
    let asked = |ids: Vec<u32>| {
        let first = ids.len().saturating_sub(3);
        let targets = (first..ids.len())
            .flat_map(|position| {
                [1, 7].map(|id| TokenTarget {
                    position,
                    token_id: id,
                })
            })
            .collect();
        Sequence { ids, targets }
    };
    all.into_iter().map(asked).collect()
}

test!(scores_do_not_depend_on_the_rest_of_the_batch);
test!(kv_cache_changes_no_logit);
proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    fn scores_do_not_depend_on_the_rest_of_the_batch(seed in any::<u32>()) {
        let model = tiny();
        let all = sequences(seed, model.config.vocab as u32);
        let together = walk::token_scores(&model, &all).unwrap();
        for (sequence, together) in all.iter().zip(&together) {
            let alone = walk::token_scores(&model, std::slice::from_ref(sequence)).unwrap();
            prop_assert_eq!(bits(&alone[0]), bits(together), "{} tokens", sequence.ids.len());
        }
    }

    fn kv_cache_changes_no_logit(seed in any::<u32>()) {
        let model = tiny();
        let all: Vec<Vec<u32>> = sequences(seed, model.config.vocab as u32).into_iter().take(6).map(|s| s.ids).collect();
        let longest = all.iter().map(Vec::len).max().unwrap_or(0);
        let mut decoder = Decoder::new(&model, all.len(), longest);
        let mut stream = Seed::from_u64(u64::from(seed)).rng();
        let mut read = vec![0; all.len()];
        while read.iter().zip(&all).any(|(&read, ids)| read < ids.len()) {
            let mut on = Vec::new();
            for (i, ids) in all.iter().enumerate() {
                if read[i] == ids.len() {
                    continue;
                }
                let step = stream.random_range(1..=(ids.len() - read[i]).min(50));
                on.push((i, ids[read[i]..read[i] + step].to_vec()));
                read[i] += step;
            }
            for ((i, _), next) in on.iter().zip(decoder.extend_sequences(&on).unwrap()) {
                let whole = walk::logits(&model, &all[*i][..read[*i]]).unwrap();
                let whole = whole.values();
                prop_assert!(whole[whole.len() - next.len()..] == next[..], "{} tokens", read[*i]);
            }
        }
    }
}
