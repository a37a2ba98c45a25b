//! Constants of the standard normal distribution in f32, for GELU on the CPU and on a GPU: its
//! density φ and its distribution function Φ.

/// φ(0) = 1 / √(2π).
pub(crate) const DENSITY_AT_ZERO: f32 = 0.398_942_3;

/// Step of the variable t = 1 / (1 + step · |x|), in which the tail's ratio is a polynomial.
pub(crate) const TAIL_STEP: f32 = 0.24;

/// Φ(−|x|) / e^(−x²/2) = t · P(t), the coefficients of P from the highest power down.
///
/// P interpolates the ratio at the ten Chebyshev nodes of t for |x| ≤ 13.3, beyond which e^(−x²/2)
/// is 0 in f32. Its largest relative error there is 3.7e-9, so rounding alone decides the accuracy.
pub(crate) const TAIL_COEFFICIENTS: [f32; 10] = [
    0.025_429_135,
    -0.124_124_15,
    0.204_301_29,
    -0.142_728_66,
    0.140_184,
    0.028_833_968,
    0.087_524_55,
    0.088_986_75,
    0.095_850_67,
    0.095_742_435,
];
