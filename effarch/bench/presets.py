"""Keys of ``effarch bench`` that belong together."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # A first look at a laptop's pace: ops forward and backward, two minutes on two cores.
    "quick": {
        "levels": ["op"],
        "modes": ["training"],
        "ops": [
            "softmax",
            "softmax_materialised",
            "window_sinks",
            "constant",
            "diagonal",
            "gated_delta",
            "diagonal_plus_rank_one",
        ],
        "lengths": [1024, 4096, 16384],
        "heads": 4,
        "repeats": 3,
        "time_limit": 2.0,
        "baselines": False,
    },
    # The shapes of flash-linear-attention's published comparison with FlashAttention: 8 rows, 32 heads of 128.
    "paper": {
        "levels": ["op"],
        "modes": ["prefill", "training"],
        "lengths": [2**n for n in range(7, 15)],
        "batch_size": 8,
        "heads": 32,
        "head_dim": 128,
        "time_limit": 10.0,
    },
    # As far as memory and patience reach.
    "long": {
        "levels": ["op", "mixer"],
        "modes": ["training", "decode"],
        "lengths": [2**n for n in range(12, 21)],
        "heads": 2,
        "time_limit": 60.0,
    },
}
