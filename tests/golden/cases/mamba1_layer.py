"""Mamba as a whole layer: transformers, its torch path (a loop over time)."""

from effarch.mixers.mamba1 import Mamba1
from tests.golden import draw
from tests.golden.mixer import ours as run
from tests.golden.mixer import torchs

D, WIDTH, N, RANK = 12, 24, 4, 3


def inputs(rng):
    normal = {
        "in_proj.weight": (2 * WIDTH, D),
        "conv1d.weight": (WIDTH, 1, 4),
        "conv1d.bias": (WIDTH,),
        "x_proj.weight": (RANK + 2 * N, WIDTH),
        "dt_proj.weight": (WIDTH, RANK),
        "dt_proj.bias": (WIDTH,),
        "D": (WIDTH,),
        "out_proj.weight": (D, WIDTH),
    }
    found = {name: rng.normal(size=shape) * shape[-1] ** -0.5 for name, shape in normal.items()}
    return {"x": rng.normal(size=(1, draw.TIME, D)), **found, "A_log": rng.uniform(-1, 2, size=(WIDTH, N))}


def independent(x, **weights):
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = MambaConfig(hidden_size=D, state_size=N, time_step_rank=RANK, expand=2, num_hidden_layers=1)
    return {"y": torchs(MambaMixer(config, 0).eval(), weights, x)}


def ours(x, **w):
    """Their projections stand side by side: [x, z] of the input, [step sizes, B, C] of the channels."""
    kernel = w["x_proj.weight"].T
    parameters = {
        "x.kernel": w["in_proj.weight"][:WIDTH].T,
        "z.kernel": w["in_proj.weight"][WIDTH:].T,
        "conv.weight": w["conv1d.weight"][:, 0].T,
        "conv.bias": w["conv1d.bias"],
        "dt.inner.kernel": kernel[:, :RANK],
        "b.kernel": kernel[:, RANK : RANK + N],
        "c.kernel": kernel[:, RANK + N :],
        "dt.outer.kernel": w["dt_proj.weight"].T,
        "dt.bias": w["dt_proj.bias"],
        "log_rate": w["A_log"],
        "skip": w["D"],
        "o.kernel": w["out_proj.weight"].T,
    }
    return {"y": run(Mamba1(state_size=N, rank=RANK), D, x, parameters)}
