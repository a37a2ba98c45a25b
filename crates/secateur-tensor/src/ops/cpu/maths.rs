//! What the CPU's loops are made of: sums over running sums, e^x, the logistic function. All of it is inlined, so that it is
//! compiled for the vector units of whoever calls it.

use crate::ops::simd::LANES;

/// Σ a·b
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_lanes
        .remainder()
        .iter()
        .zip(b_lanes.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in a_lanes.zip(b_lanes) {
        for ((s, x), y) in sums.iter_mut().zip(x).zip(y) {
            *s += x * y;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Σ a
#[inline(always)]
pub fn sum_f32(a: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let lanes = a.chunks_exact(LANES);
    let rest: f32 = lanes.remainder().iter().sum();
    for x in lanes {
        for (s, x) in sums.iter_mut().zip(x) {
            *s += x;
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
fn larger_or_nan(x: f32, most: f32) -> f32 {
    if x > most || x.is_nan() { x } else { most }
}

/// The largest of the numbers; NaN if one of them is.
#[inline(always)]
pub fn max_or_nan(a: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; LANES];
    let lanes = a.chunks_exact(LANES);
    let rest = lanes
        .remainder()
        .iter()
        .fold(f32::NEG_INFINITY, |most, &x| larger_or_nan(x, most));
    for x in lanes {
        for (m, &x) in most.iter_mut().zip(x) {
            *m = larger_or_nan(x, *m);
        }
    }
    most.iter().fold(rest, |most, &x| larger_or_nan(x, most))
}

/// e^x within two units in the last place, 0 below −87.3, without a branch: x = n·ln 2 + r, a polynomial in r, and n into the
/// exponent (Cody and Waite 1980; coefficients of Moshier's Cephes, `expf`).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.33;
    const HIGHEST: f32 = 89.0;
    /// 1.5 · 2²³: adding it rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // written so that NaN stays NaN
    let low = if x < LOWEST { LOWEST } else { x };
    let within = if low > HIGHEST { HIGHEST } else { low };
    let shifted = within.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, within));
    let mut p = 1.987_569_1e-4f32;
    for c in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = p.mul_add(r, c);
    }
    let fraction = p.mul_add(r * r, r) + 1.0;
    // 2ⁿ; two factors, because 2¹²⁸ is no number
    let half = |n: u32| f32::from_bits(n << 23);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let first = exponent >> 1;
    let value = fraction * half((first + 127) as u32) * half((exponent - first + 127) as u32);
    if x < LOWEST { 0.0 } else { value }
}

/// 1 / (1 + e^−x)
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
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
    fn sums_and_the_largest_see_every_number() {
        let numbers: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(dot(&numbers, &[2.0; 37]), 2.0 * 666.0);
        assert_eq!(max_or_nan(&numbers), 36.0);
        assert!(max_or_nan(&[1.0, f32::NAN, 2.0]).is_nan());
        assert_eq!(sum_f32(&numbers), 666.0);
        assert_eq!(sum_f64(&[0.5; 37]), 18.5);
    }
}
