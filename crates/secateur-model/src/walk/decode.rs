//! Reading on where one stopped: keys and values of what was read are kept (a KV cache), so that a token costs one position.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use super::block_settings;
use super::pack::Pack;
use super::source::for_each_block;
use crate::Model;
use crate::hooks::NoHooks;
use crate::wiring::{BlockTensor, TensorId};
use secateur_tensor::ops::{self, KvCache, RotaryTables, SequenceSpan};
use secateur_tensor::{Activations, PACK_TOKENS};

/// Sequences that are read bit by bit. On the CPU what is read has the same bits as if it were read at once, and alone.
pub struct Decoder<'m> {
    model: &'m Model,
    rotary: Arc<RotaryTables>,
    /// Of each block.
    kv_caches: Vec<Mutex<KvCache>>,
}

impl<'m> Decoder<'m> {
    /// So many sequences, of which nothing was read, of up to so many tokens each.
    pub fn new(model: &'m Model, sequences: usize, positions: usize) -> Self {
        let past = model.blocks.iter().map(|block| {
            Mutex::new(KvCache::new(
                sequences,
                positions,
                block[BlockTensor::K].rows(),
            ))
        });
        Self {
            rotary: Arc::new(model.rotary_tables(positions)),
            kv_caches: past.collect(),
            model,
        }
    }

    /// Reads on in some sequences, each by its number and at least one token. Returns, in their order, the logits of what
    /// comes next: (vocabulary) each.
    ///
    /// # Panics
    /// If a sequence becomes longer than was said.
    pub fn extend_sequences(&mut self, on: &[(usize, Vec<u32>)]) -> Vec<Vec<f32>> {
        let model = self.model;
        let packs = self.build_packs(on);
        let mut states: Vec<Activations> = packs
            .iter()
            .map(|pack| ops::embed(&model.embedding, &pack.ids))
            .collect();
        for_each_block(model, 0..model.blocks.len(), |layer, block| {
            for (pack, x) in packs.iter().zip(&mut states) {
                *x = block.forward(
                    x.clone(),
                    &block_settings(model, pack, Some(&self.kv_caches[layer])),
                    &NoHooks,
                );
            }
            ControlFlow::Continue(())
        });
        let head = model.weight(TensorId::LmHead).to_memory();
        let _lent = (head.lease_on_gpu(), model.final_norm.lease_on_gpu());
        let next = |(pack, x): (&Pack, Activations)| {
            let x = ops::gather_rows(
                &x,
                pack.layout
                    .spans
                    .iter()
                    .map(|span| span.rows.end - 1)
                    .collect(),
            );
            let logits = ops::linear(model.normalize_output(x, None), &head, None);
            logits
                .values()
                .chunks_exact(head.rows())
                .map(<[f32]>::to_vec)
                .collect::<Vec<_>>()
        };
        packs.iter().zip(states).flat_map(next).collect()
    }

    /// As many sequences to a pack as fit.
    fn build_packs(&self, on: &[(usize, Vec<u32>)]) -> Vec<Pack> {
        let mut packs: Vec<Pack> = Vec::new();
        let mut spans: Vec<Vec<SequenceSpan>> = Vec::new();
        for (past, ids) in on {
            if packs
                .last()
                .is_none_or(|pack| pack.ids.len() + ids.len() > PACK_TOKENS)
            {
                packs.push(Pack::empty(packs.len(), packs.len(), &self.rotary));
                spans.push(Vec::new());
            }
            if let (Some(pack), Some(spans)) = (packs.last_mut(), spans.last_mut()) {
                let rows = pack.ids.len()..pack.ids.len() + ids.len();
                pack.ids.extend(ids);
                spans.push(SequenceSpan {
                    rows,
                    prefix: Vec::new(),
                    cache_sequence: *past,
                });
            }
        }
        packs
            .iter_mut()
            .zip(spans)
            .for_each(|(pack, spans)| pack.layout.spans = spans.into());
        packs
    }
}
