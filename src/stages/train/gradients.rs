//! The gradients of one update.

use std::collections::BTreeMap;

use super::optimizer::global_norm;
use secateur_model::ParameterId;
use secateur_model::walk::{GradientVisitor, Pack};
use secateur_model::wiring::TensorId;
use secateur_tensor::ops::{GradientQuery, GradientResult};

/// The gradients of the trained parameters, added up over the packs and micro-batches of one
/// update. As a visitor of a backward walk it queries and receives them.
pub struct UpdateGradients {
    /// An empty vector until the parameter's first gradient arrives.
    sums: BTreeMap<ParameterId, Vec<f32>>,
    /// Each gradient is multiplied by this before it is added: the micro-batch's share of the
    /// update's targets.
    share: f32,
}

impl UpdateGradients {
    /// For these parameters, before the first gradient.
    pub(super) fn new(parameters: impl Iterator<Item = ParameterId>) -> Self {
        Self {
            sums: parameters.map(|id| (id, Vec::new())).collect(),
            share: 1.0,
        }
    }

    /// The gradients that follow are those of the mean loss over this share of the update's
    /// targets.
    pub(super) fn set_share(&mut self, share: f32) {
        self.share = share;
    }

    /// The norm of all gradients together, added up in the order of the parameters.
    pub(super) fn global_norm(&self) -> f64 {
        global_norm(self.sums.values().map(|gradient| &gradient[..]))
    }

    /// The gradients of the parameters that have one.
    pub(super) fn into_gradients(mut self) -> BTreeMap<ParameterId, Vec<f32>> {
        self.sums.retain(|_, gradient| !gradient.is_empty());
        self.sums
    }

    /// The parameter to whose sum a gradient is added. A tied head has no entry: its gradient is
    /// added to that of the embedding.
    fn summed_parameter(&self, parameter: ParameterId) -> ParameterId {
        match parameter {
            ParameterId::Weight(TensorId::LmHead) if !self.sums.contains_key(&parameter) => {
                ParameterId::Weight(TensorId::Embedding)
            }
            _ => parameter,
        }
    }
}

impl GradientVisitor for UpdateGradients {
    fn query(&self, parameter: ParameterId, _: &Pack) -> Option<GradientQuery> {
        let is_trained = self.sums.contains_key(&self.summed_parameter(parameter));
        is_trained.then_some(GradientQuery::Gradient)
    }

    fn receive(&mut self, parameter: ParameterId, _: &Pack, result: GradientResult) {
        let GradientResult::Gradient { gradient, .. } = result else {
            unreachable!("the query is for the gradient")
        };
        let parameter = self.summed_parameter(parameter);
        let Some(sum) = self.sums.get_mut(&parameter) else {
            return;
        };
        let mut gradient = gradient.into_vec();
        if self.share != 1.0 {
            gradient.iter_mut().for_each(|g| *g *= self.share);
        }
        if sum.is_empty() {
            *sum = gradient;
        } else {
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        }
    }
}
