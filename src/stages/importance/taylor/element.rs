//! What an element of a weight adds to the score of its channel (LLM-Pruner, equations 3 and 5): w its value, g its gradient,
//! f its Fisher information. The formulas stand here twice, for the CPU and for a GPU.

use super::super::Taylor;
use secateur_tensor::gpu::GpuMatrix;
use secateur_tensor::ops::{ElementScore, dispatch_simd};

/// A criterion; f is `fisher` times the samples' squares.
pub struct TaylorElementScore {
    pub form: Taylor,
    pub fisher_scale: f64,
}

impl ElementScore for TaylorElementScore {
    fn score_on_cpu(&self, w: &[f32], g: &[f32], squares: &[f32], out: &mut [f64]) {
        let fisher = self.fisher_scale;
        match self.form {
            Taylor::Vector => score_first_order(w, g, out, |w, g| w * g),
            Taylor::ElementFirst => score_first_order(w, g, out, |w, g| (w * g).abs()),
            Taylor::VectorMixed => score_second_order(w, g, squares, out, |w, g, s| {
                w * g - 0.5 * (s * fisher) * w * w
            }),
            Taylor::ElementSecond => {
                score_second_order(w, g, squares, out, |w, _, s| ((s * fisher) * w * w).abs())
            }
            Taylor::ElementMixed => score_second_order(w, g, squares, out, |w, g, s| {
                (w * g - 0.5 * (s * fisher) * w * w).abs()
            }),
        }
    }

    fn score_on_gpu(&self, w: GpuMatrix, g: GpuMatrix, squares: Option<GpuMatrix>) -> GpuMatrix {
        let raised = |w: GpuMatrix| {
            squares.unwrap_or_else(|| g.clone()) * self.fisher_scale as f32 * w.square()
        }; // f · w²
        match self.form {
            Taylor::Vector => w * g,
            Taylor::ElementFirst => (w * g).abs(),
            Taylor::VectorMixed => w.clone() * g.clone() - raised(w) * 0.5,
            Taylor::ElementSecond => raised(w).abs(),
            Taylor::ElementMixed => (w.clone() * g.clone() - raised(w) * 0.5).abs(),
        }
    }
}

fn score_first_order(w: &[f32], g: &[f32], out: &mut [f64], of: impl Fn(f64, f64) -> f64 + Copy) {
    dispatch_simd(
        #[inline(always)]
        || score_each_element(w, g, g, &mut *out, move |w, g, _| of(w, g)),
    );
}

fn score_second_order(
    w: &[f32],
    g: &[f32],
    squares: &[f32],
    out: &mut [f64],
    of: impl Fn(f64, f64, f64) -> f64 + Copy,
) {
    dispatch_simd(
        #[inline(always)]
        || score_each_element(w, g, squares, &mut *out, of),
    );
}

/// Widens each element and lets `of` say what it is worth.
#[inline(always)]
fn score_each_element(
    w: &[f32],
    g: &[f32],
    s: &[f32],
    out: &mut [f64],
    of: impl Fn(f64, f64, f64) -> f64,
) {
    for (((out, w), g), s) in out.iter_mut().zip(w).zip(g).zip(s) {
        *out = of(f64::from(*w), f64::from(*g), f64::from(*s));
    }
}
