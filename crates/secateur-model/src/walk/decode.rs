//! Decoding: sequences are extended token by token. The keys and values of earlier positions are kept (a KV
//! cache), so a new token costs one position.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use super::pack::Pack;
use super::source::for_each_block;
use super::{block_settings, embed_packs, final_norm};
use crate::Model;
use crate::hooks::NoHooks;
use crate::wiring::{BlockTensor, TensorId};
use secateur_tensor::ops::{self, KvCache, RotaryTables, SequenceSpan};
use secateur_tensor::{Activations, PACK_TOKENS, Weight, WeightReadError};

/// Sequences that are extended step by step. On the CPU the logits have the same bits as if the sequence were
/// read at once, and alone.
pub struct Decoder<'m> {
    model: &'m Model,
    rotary: Arc<RotaryTables>,
    /// One for each block.
    kv_caches: Vec<Mutex<KvCache>>,
}

impl<'m> Decoder<'m> {
    /// A decoder of `sequences` empty sequences, each of at most `positions` tokens.
    pub fn new(model: &'m Model, sequences: usize, positions: usize) -> Self {
        let kv_caches = model.blocks.iter().map(|block| {
            let width = block[BlockTensor::K].rows();
            Mutex::new(KvCache::new(sequences, positions, width))
        });
        Self {
            rotary: Arc::new(model.rotary_tables(positions)),
            kv_caches: kv_caches.collect(),
            model,
        }
    }

    /// Appends tokens, at least one, to some sequences, each given by its number. Returns the logits of each
    /// one's next token, (vocabulary), in the order of `extensions`.
    ///
    /// # Errors
    /// If a weight on disk cannot be read; the decoder is then of no further use.
    ///
    /// # Panics
    /// If a sequence becomes longer than the `positions` of [`Decoder::new`].
    pub fn extend_sequences(
        &mut self,
        extensions: &[(usize, Vec<u32>)],
    ) -> Result<Vec<Vec<f32>>, WeightReadError> {
        let model = self.model;
        let packs = self.build_packs(extensions);
        let mut states = embed_packs(model, &packs)?;
        for_each_block(model, 0..model.blocks.len(), |layer, block| {
            for (pack, state) in packs.iter().zip(&mut states) {
                let settings = block_settings(model, pack, Some(&self.kv_caches[layer]));
                *state = block.forward(state.clone(), &settings, &NoHooks);
            }
            ControlFlow::Continue(())
        })?;
        let head = model.weight(TensorId::LmHead).to_operand()?;
        let _gpu_leases = (head.lease_on_gpu(), model.final_norm.lease_on_gpu());
        let pack_outputs = packs.iter().zip(states);
        let logits =
            pack_outputs.flat_map(|(pack, output)| next_token_logits(model, &head, pack, &output));
        Ok(logits.collect())
    }

    /// Packs of as many sequences as fit.
    fn build_packs(&self, extensions: &[(usize, Vec<u32>)]) -> Vec<Pack> {
        let mut packs: Vec<Pack> = Vec::new();
        let mut pack_spans: Vec<Vec<SequenceSpan>> = Vec::new();
        for (sequence, ids) in extensions {
            if packs
                .last()
                .is_none_or(|pack| pack.ids.len() + ids.len() > PACK_TOKENS)
            {
                packs.push(Pack::empty(packs.len(), packs.len(), &self.rotary));
                pack_spans.push(Vec::new());
            }
            if let (Some(pack), Some(spans)) = (packs.last_mut(), pack_spans.last_mut()) {
                let rows = pack.ids.len()..pack.ids.len() + ids.len();
                pack.ids.extend(ids);
                spans.push(SequenceSpan {
                    rows,
                    prefix: Vec::new(),
                    cache_sequence: *sequence,
                });
            }
        }
        for (pack, spans) in packs.iter_mut().zip(pack_spans) {
            pack.layout.spans = spans.into();
        }
        packs
    }
}

/// The logits after the last row of each sequence, (vocabulary) each. `output` is the last block's,
/// (positions, hidden).
fn next_token_logits(
    model: &Model,
    head: &Weight,
    pack: &Pack,
    output: &Activations,
) -> Vec<Vec<f32>> {
    let last_rows = pack.layout.spans.iter().map(|span| span.rows.end - 1);
    let last_hidden = ops::gather_rows(output, last_rows.collect());
    let logits = ops::linear(final_norm(model, last_hidden), head, None);
    logits
        .values()
        .chunks_exact(head.rows())
        .map(<[f32]>::to_vec)
        .collect()
}
