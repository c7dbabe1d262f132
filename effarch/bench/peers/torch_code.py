"""The peers: torch's attention, chunk functions of transformers, Triton kernels of flash-linear-attention."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from effarch.bench.peers.protocol import Peer, Tensors

Leaves = Mapping[str, Any]


def peers_of(op: str) -> tuple[Peer, ...]:
    """Those that do what our op does."""
    return tuple(peer for peer in PEERS if peer.op == op)


def _scaled_dot_product_attention() -> Callable[[Leaves], Any]:
    from torch.nn.functional import scaled_dot_product_attention

    def run(x: Leaves) -> Any:
        q, k, v = (x[name].transpose(1, 2) for name in "qkv")
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    return run


def _qwen3_next() -> Callable[[Leaves], Any]:
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    chunks = inspect.unwrap(torch_chunk_gated_delta_rule)  # which would rather call flash-linear-attention

    def run(x: Leaves) -> Any:
        return chunks(x["large_q"], x["k"], x["v"], g=x["log_decay"], beta=x["beta"])[0]

    return run


def _unscaled(inputs: Tensors) -> Tensors:
    """Undoes in advance that the function multiplies q by K^-1/2."""
    q = inputs["q"]
    return {"large_q": q * q.shape[-1] ** 0.5, **{name: x for name, x in inputs.items() if name != "q"}}


def _mamba2() -> Callable[[Leaves], Any]:
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    chunks = inspect.unwrap(mamba2_chunk_scan)  # which would rather call mamba-ssm

    def run(x: Leaves) -> Any:
        o = chunks(x["x"], x["dt"], x["a"], x["k"], x["q"], chunk_size=CHUNK)
        return o[0] if isinstance(o, tuple) else o

    return run


CHUNK = 256  # Mamba2Config's default


def _discretised(inputs: Tensors) -> Tensors:
    """Mamba-2 has v = dt x and log-decay = -dt: x and dt from v and the log-decay."""
    dt = -inputs["log_decay"]
    x = inputs["v"] / dt[..., None].to(inputs["v"].dtype)
    return {"q": inputs["q"], "k": inputs["k"], "x": x, "dt": dt, "a": -dt.new_ones(dt.shape[-1])}


def _fla(function: str, where: str, **names: str) -> Callable[[], Callable[[Leaves], Any]]:
    """A chunk kernel of flash-linear-attention; ``names`` are its arguments beside q, k, v, by those of our inputs."""

    def load() -> Callable[[Leaves], Any]:
        kernel = getattr(importlib.import_module(f"fla.ops.{where}"), function)
        return lambda x: kernel(x["q"], x["k"], x["v"], **{n: x[our] for n, our in names.items()}, scale=1.0)[0]

    return load


def _flash_attention() -> Callable[[Leaves], Any]:
    from flash_attn import flash_attn_func

    return lambda x: flash_attn_func(x["q"], x["k"], x["v"], causal=True)


FLA = ("torch", "triton", "fla")
TRANSFORMERS = ("torch", "transformers")
HALF = ("bfloat16",)

PEERS = (
    Peer("torch scaled_dot_product_attention", "softmax", ("torch",), _scaled_dot_product_attention),
    Peer("transformers torch_chunk_gated_delta_rule", "gated_delta", TRANSFORMERS, _qwen3_next, prepare=_unscaled),
    Peer("transformers mamba2_chunk_scan", "scalar", TRANSFORMERS, _mamba2, prepare=_discretised),
    Peer("flash-linear-attention chunk_retention", "constant", FLA, _fla("chunk_retention", "retention"), gpu=True),
    Peer(
        "flash-linear-attention chunk_simple_gla",
        "scalar",
        FLA,
        _fla("chunk_simple_gla", "simple_gla", g="log_decay"),
        gpu=True,
    ),
    Peer("flash-linear-attention chunk_gla", "diagonal", FLA, _fla("chunk_gla", "gla", g="log_decay"), gpu=True),
    Peer(
        "flash-linear-attention chunk_delta_rule",
        "delta",
        FLA,
        _fla("chunk_delta_rule", "delta_rule", beta="beta"),
        gpu=True,
        dtypes=HALF,
    ),
    Peer(
        "flash-linear-attention chunk_gated_delta_rule",
        "gated_delta",
        FLA,
        _fla("chunk_gated_delta_rule", "gated_delta_rule", g="log_decay", beta="beta"),
        gpu=True,
        dtypes=HALF,
    ),
    Peer(
        "flash-linear-attention chunk_dplr_delta_rule",
        "diagonal_plus_rank_one",
        FLA,
        _fla("chunk_dplr_delta_rule", "generalized_delta_rule", a="r", b="p", gk="log_decay"),
        gpu=True,
        dtypes=HALF,
    ),
    Peer("flash-attention flash_attn_func", "softmax", ("torch", "flash_attn"), _flash_attention, True, dtypes=HALF),
)
