"""Writes the golden files: ``python -m tests.golden.make [case ...]``. Needs the extra ``oracles`` (torch, CPU).

Every case runs an independent implementation (flash-linear-attention's naive functions, loaded file by file since the
package wants Triton; torch code of transformers) on ``inputs.make(case)``, and stores outputs, final states and the
gradients of ``sum(outputs * cotangents)`` for every input.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch

from tests.golden import inputs

FOLDER = Path(__file__).parent


def _naive(path: str):
    """A module of flash-linear-attention, by its path below ``fla/ops``."""
    root = Path(importlib.util.find_spec("fla").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(f"naive_{path.replace('/', '_')}", root / "ops" / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _t(*arrays):
    """``[B, T, H, ...] -> [B, H, T, ...]`` and back."""
    return [x.transpose(1, 2) for x in arrays]


def linear_attention(q, k, v, state):
    o, final = _naive("linear_attn/naive").naive_recurrent_linear_attn(
        q, k, v, initial_state=state, output_final_state=True
    )
    return {"o": o, "state": final}


def retention(q, k, v):
    return {"o": _naive("retention/naive").naive_retention(*_t(q, k, v)).transpose(1, 2)}


def simple_gla(q, k, v, log_decay, state):
    o, final = _naive("simple_gla/naive").naive_recurrent_simple_gla(q, k, v, log_decay, initial_state=state)
    return {"o": o, "state": final}


def gla(q, k, v, log_decay, state):
    o, final = _naive("gla/naive").naive_recurrent_gla(q, k, v, log_decay, state, output_final_state=True)
    return {"o": o, "state": final}


def delta_rule(q, k, v, beta, state):
    o, final = _naive("delta_rule/naive").delta_rule_recurrence(*_t(q, k, v, beta), initial_state=state)
    return {"o": o.transpose(1, 2), "state": final}


def gated_delta_rule(q, k, v, beta, state, log_decay):
    o, final = _naive("gated_delta_rule/naive").naive_recurrent_gated_delta_rule(
        q, k, v, beta, log_decay, initial_state=state, output_final_state=True
    )
    return {"o": o, "state": final}


def qwen3_next_delta_rule(q, k, v, beta, state, log_decay):
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    o, final = torch_recurrent_gated_delta_rule(
        q, k, v, g=log_decay, beta=beta, initial_state=state, output_final_state=True
    )
    return {"o": o, "state": final}


def kimi_delta_attention(q, k, v, beta, state, log_decay):
    o, final = _naive("kda/naive").naive_recurrent_kda(
        q, k, v, log_decay, beta, initial_state=state, output_final_state=True
    )
    return {"o": o, "state": final}


def rank_one(q, k, v, log_decay, state, r, p):
    o, final = _naive("generalized_delta_rule/dplr/naive").dplr_recurrence(
        *_t(q, k, v, r, p, log_decay), initial_state=state
    )
    return {"o": o.transpose(1, 2), "state": final}


def gated_delta_product(q, k, v, log_decay, state, beta):
    o, final = _naive("gated_delta_product/naive").naive_recurrent_gated_delta_product(
        q, k, v, log_decay, beta, q.shape[-1] ** -0.5, initial_state=state, output_final_state=True, num_householder=2
    )
    return {"o": o, "state": final}


def rwkv6(q, k, v, log_decay, state, u):
    o, final = _naive("rwkv6/recurrent_naive").naive_recurrent_rwkv6(
        *_t(q, k, v, log_decay), u, scale=1.0, initial_state=state, output_final_state=True
    )
    return {"o": o.transpose(1, 2), "state": final}


def hgrn(x, log_decay):
    o = _naive("hgrn/naive").naive_recurrent_hgrn(x, log_decay, output_final_state=True)
    return {"o": o[0], "state": o[1]}


def gated_slots(q, k, v, s, log_decay):
    return {"o": _naive("gsa/naive").naive_recurrent_gsa(q, k, v, s, log_decay)[0]}


def run(name: str) -> dict[str, np.ndarray]:
    """Outputs, cotangents and gradients of a case."""
    arguments = {key: torch.tensor(x, requires_grad=True) for key, x in inputs.make(name).items()}
    outputs = globals()[name](**arguments)
    rng = np.random.default_rng(1)
    cotangents = {key: rng.normal(size=tuple(y.shape)).astype(np.float32) for key, y in outputs.items()}
    sum((y * torch.tensor(cotangents[key])).sum() for key, y in outputs.items()).backward()
    found = {f"output.{key}": y.detach().numpy() for key, y in outputs.items()}
    found |= {f"cotangent.{key}": ct for key, ct in cotangents.items()}
    return found | {f"gradient.{key}": x.grad.numpy() for key, x in arguments.items()}


if __name__ == "__main__":
    for case in sys.argv[1:] or inputs.MAKERS:
        path = FOLDER / f"{case}.npz"
        np.savez_compressed(path, **run(case))
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
