//! Reading on where one stopped: keys and values of what was read are kept (a KV cache), so that a token costs one position.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use super::pack::Pack;
use super::settings;
use super::source::each_block;
use crate::model::Model;
use crate::model::blocks::Plain;
use crate::model::wiring::{Part, Place};
use crate::ops::{self, Past, Rotary, Span};
use crate::tensor::{Hidden, PACK};

/// Sequences that are read bit by bit. On the CPU what is read has the same bits as if it were read at once, and alone.
pub struct Decoder<'m> {
    model: &'m Model,
    rotary: Arc<Rotary>,
    /// Of each block.
    past: Vec<Mutex<Past>>,
}

impl<'m> Decoder<'m> {
    /// So many sequences, of which nothing was read, of up to so many tokens each.
    pub fn new(model: &'m Model, sequences: usize, positions: usize) -> Self {
        let past = model.blocks.iter().map(|block| Mutex::new(Past::new(sequences, positions, block[Part::K].rows())));
        Self { rotary: Arc::new(model.rotary(positions)), past: past.collect(), model }
    }

    /// Reads on in some sequences, each by its number and at least one token. Returns, in their order, the logits of what
    /// comes next: (vocabulary) each.
    ///
    /// # Panics
    /// If a sequence becomes longer than was said.
    pub fn read(&mut self, on: &[(usize, Vec<u32>)]) -> Vec<Vec<f32>> {
        let model = self.model;
        let packs = self.packs(on);
        let mut states: Vec<Hidden> = packs.iter().map(|pack| ops::embed(&model.embedding, &pack.ids)).collect();
        each_block(model, 0..model.blocks.len(), |layer, block| {
            for (pack, x) in packs.iter().zip(&mut states) {
                *x = block.forward(x.clone(), &settings(model, pack, Some(&self.past[layer])), &Plain);
            }
            ControlFlow::Continue(())
        });
        let head = model.weight(Place::Head).resident();
        let _lent = (head.lent(), model.norm.lent());
        let next = |(pack, x): (&Pack, Hidden)| {
            let x = ops::picked(&x, pack.layout.spans.iter().map(|span| span.rows.end - 1).collect());
            let logits = ops::linear(ops::rms_norm(x, &model.norm, model.config.norm_epsilon, None), &head, None);
            logits.values().chunks_exact(head.rows()).map(<[f32]>::to_vec).collect::<Vec<_>>()
        };
        packs.iter().zip(states).flat_map(next).collect()
    }

    /// As many sequences to a pack as fit.
    fn packs(&self, on: &[(usize, Vec<u32>)]) -> Vec<Pack> {
        let mut packs: Vec<Pack> = Vec::new();
        let mut spans: Vec<Vec<Span>> = Vec::new();
        for (past, ids) in on {
            if packs.last().is_none_or(|pack| pack.ids.len() + ids.len() > PACK) {
                packs.push(Pack::empty(packs.len(), packs.len(), &self.rotary));
                spans.push(Vec::new());
            }
            if let (Some(pack), Some(spans)) = (packs.last_mut(), spans.last_mut()) {
                let rows = pack.ids.len()..pack.ids.len() + ids.len();
                pack.ids.extend(ids);
                spans.push(Span { rows, before: Vec::new(), past: *past });
            }
        }
        packs.iter_mut().zip(spans).for_each(|(pack, spans)| pack.layout.spans = spans.into());
        packs
    }
}
