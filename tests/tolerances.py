"""The one tolerance table. NaN is checked first; a tolerance is never relaxed to make a test pass."""

from types import SimpleNamespace

import numpy as np

TOL = SimpleNamespace(
    f64=1e-12,  # float64 against float64
    f32_forward=1e-5,  # float32 against the float64 oracle: outputs and states
    f32_grad=5e-5,  # float32 against the float64 oracle: every gradient
    bf16=3e-2,  # bfloat16 against float32
)

FLOOR = 1e-6  # a true value this small (an underflowed gate gradient) is compared absolutely against it


def relative_error(actual, expected, floor: float = FLOOR) -> float:
    """Normwise ``|x - y| / max(|y|, floor)``; raises on NaN or Inf in either array and on differing shapes."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shapes differ: {actual.shape} and {expected.shape}"
    assert np.isfinite(expected).all(), "the expected values are not finite"
    assert np.isfinite(actual).all(), "the actual values are not finite"
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), floor))


def assert_close(actual, expected, tolerance: float, what: str = "", floor: float = FLOOR) -> None:
    """Asserts that :func:`relative_error` is within ``tolerance``."""
    error = relative_error(actual, expected, floor)
    assert error <= tolerance, f"{what or 'value'}: relative error {error:.2e} > {tolerance:.0e}"
