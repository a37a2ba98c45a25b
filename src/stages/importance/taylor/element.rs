//! What an element of a weight adds to the score of its channel (LLM-Pruner, equations 3 and 5): w its value, g its gradient,
//! f its Fisher information. The formulas stand here twice, for the CPU and for a GPU.

use super::super::Taylor;
use crate::ops::{Worth, vectorised};
use crate::tensor::gpu::Matrix;

/// A criterion; f is `fisher` times the samples' squares.
pub struct Element {
    pub taylor: Taylor,
    pub fisher: f64,
}

impl Worth for Element {
    fn on_cpu(&self, w: &[f32], g: &[f32], squares: &[f32], out: &mut [f64]) {
        let fisher = self.fisher;
        match self.taylor {
            Taylor::Vector => first(w, g, out, |w, g| w * g),
            Taylor::ElementFirst => first(w, g, out, |w, g| (w * g).abs()),
            Taylor::VectorMixed => second(w, g, squares, out, |w, g, s| w * g - 0.5 * (s * fisher) * w * w),
            Taylor::ElementSecond => second(w, g, squares, out, |w, _, s| ((s * fisher) * w * w).abs()),
            Taylor::ElementMixed => second(w, g, squares, out, |w, g, s| (w * g - 0.5 * (s * fisher) * w * w).abs()),
        }
    }

    fn on_gpu(&self, w: Matrix, g: Matrix, squares: Option<Matrix>) -> Matrix {
        let raised = |w: Matrix| squares.unwrap_or_else(|| g.clone()) * self.fisher as f32 * w.square(); // f · w²
        match self.taylor {
            Taylor::Vector => w * g,
            Taylor::ElementFirst => (w * g).abs(),
            Taylor::VectorMixed => w.clone() * g.clone() - raised(w) * 0.5,
            Taylor::ElementSecond => raised(w).abs(),
            Taylor::ElementMixed => (w.clone() * g.clone() - raised(w) * 0.5).abs(),
        }
    }
}

fn first(w: &[f32], g: &[f32], out: &mut [f64], of: impl Fn(f64, f64) -> f64 + Copy) {
    vectorised(
        #[inline(always)]
        || each(w, g, g, &mut *out, move |w, g, _| of(w, g)),
    );
}

fn second(w: &[f32], g: &[f32], squares: &[f32], out: &mut [f64], of: impl Fn(f64, f64, f64) -> f64 + Copy) {
    vectorised(
        #[inline(always)]
        || each(w, g, squares, &mut *out, of),
    );
}

/// Widens each element and lets `of` say what it is worth.
#[inline(always)]
fn each(w: &[f32], g: &[f32], s: &[f32], out: &mut [f64], of: impl Fn(f64, f64, f64) -> f64) {
    for (((out, w), g), s) in out.iter_mut().zip(w).zip(g).zip(s) {
        *out = of(f64::from(*w), f64::from(*g), f64::from(*s));
    }
}
