//! Building blocks of the CPU's loops: sums, maxima, e^x, the logistic function. All are inlined,
//! so that they are compiled for the vector instructions of the loop that calls them.
//!
//! A sum has LANES partial sums: lane i adds the elements i, i + LANES, i + 2 · LANES, …, the lanes
//! are then added in order, and the sum of the elements after the last whole chunk is added last.
//! So the order of additions depends on the length alone, not on the vector instructions.

use crate::ops::simd::LANES;

/// Σ a·b over two slices of one length, in f32.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let remainder: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f32>() + remainder
}

/// Σ a, in f32.
#[inline(always)]
pub(crate) fn sum_f32(a: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let chunks = a.chunks_exact(LANES);
    let remainder: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    sums.iter().sum::<f32>() + remainder
}

#[inline(always)]
fn larger_or_nan(x: f32, max: f32) -> f32 {
    if x > max || x.is_nan() { x } else { max }
}

/// The largest element; NaN if one of them is NaN, −∞ for an empty slice.
#[inline(always)]
pub(crate) fn max_or_nan(a: &[f32]) -> f32 {
    let mut lane_max = [f32::NEG_INFINITY; LANES];
    let chunks = a.chunks_exact(LANES);
    let remainder_max = chunks
        .remainder()
        .iter()
        .fold(f32::NEG_INFINITY, |max, &x| larger_or_nan(x, max));
    for chunk in chunks {
        for (max, &x) in lane_max.iter_mut().zip(chunk) {
            *max = larger_or_nan(x, *max);
        }
    }
    lane_max
        .iter()
        .fold(remainder_max, |max, &x| larger_or_nan(x, max))
}

/// e^x within two units in the last place, and 0 below −87.33, without a branch.
///
/// x = n·ln 2 + r with an integer n and |r| ≤ ½ ln 2; e^r is a polynomial in r, and 2ⁿ is written
/// into the exponent (Cody and Waite 1980; the coefficients are those of `expf` in Moshier's
/// Cephes).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.33;
    const HIGHEST: f32 = 89.0;
    /// 1.5 · 2²³. Adding it rounds a number to the nearest integer n, and the bits of the sum are
    /// then those of ROUND plus n.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts: n · LN_2_HIGH is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons with NaN are false, so NaN passes both bounds.
    let above_lowest = if x < LOWEST { LOWEST } else { x };
    let clamped = if above_lowest > HIGHEST {
        HIGHEST
    } else {
        above_lowest
    };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, clamped));
    // e^r = 1 + r + r² · P(r), the coefficients of P from the highest power down
    let mut polynomial = 1.987_569_1e-4f32;
    for coefficient in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        polynomial = polynomial.mul_add(r, coefficient);
    }
    let exp_r = polynomial.mul_add(r * r, r) + 1.0;
    // 2ⁿ is the product of two powers of two, because n may be 128 and 2¹²⁸ is not an f32.
    let power_of_two = |biased_exponent: u32| f32::from_bits(biased_exponent << 23);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = exponent >> 1;
    let value =
        exp_r * power_of_two((half + 127) as u32) * power_of_two((exponent - half + 127) as u32);
    if x < LOWEST { 0.0 } else { value }
}

/// 1 / (1 + e^−x)
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::simd::sum_f64;

    #[test]
    fn exp_is_exact_to_two_units_in_the_last_place() {
        for i in -870_000..=887_000 {
            let x = i as f32 * 1e-4;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (ours - exact).abs() <= 2.4e-7 * exact,
                "e^{x}: {ours}, not {exact}"
            );
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e9), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_max_include_every_element() {
        let numbers: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(dot(&numbers, &[2.0; 37]), 2.0 * 666.0);
        assert_eq!(max_or_nan(&numbers), 36.0);
        assert!(max_or_nan(&[1.0, f32::NAN, 2.0]).is_nan());
        assert_eq!(sum_f32(&numbers), 666.0);
        assert_eq!(sum_f64(&[0.5; 37]), 18.5);
    }
}
