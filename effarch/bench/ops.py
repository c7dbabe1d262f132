"""The operations: linear recurrences by transition, and the softmax attentions that they are measured against."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from effarch.bench.platform_attention import platform_attention
from effarch.bench.program import Program, filled, gradient_of, tree_bytes
from effarch.ops.attention import KVCache, RingCache, attend, softmax_attention, window_attention
from effarch.ops.recurrence import Constant, Delta, Diagonal, DiagonalPlusRankOne, Scalar, Transition, linear_recurrence
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.typing import Array

WINDOW = 512  # of the window baselines, tokens
SINKS = 4
DECODED = 32  # tokens that one call decodes

Inputs = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Op:
    """An operation on ``q, k, v [B, T, H, K]`` and gates.

    Attributes:
      about: one line. gates: what is drawn beside q, k and v. forward: outputs ``[B, T, H, K]``.
      flops: of the forward pass over one row of T tokens with H heads of K.
      state: of B rows that have room for T tokens, none read, H heads of K, by dtype.
      step: outputs of one more token, and the next state.
    """

    about: str
    gates: tuple[str, ...]
    forward: Callable[[Inputs], Array]
    flops: Callable[[int, int, int], int]
    state: Callable[..., Any]
    step: Callable[[Any, Inputs], tuple[Array, Any]]


def retention_decay(heads: int) -> Array:
    """RetNet's fixed decays ``[H]``, natural logarithms."""
    return jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(heads, dtype=jnp.float32))))


TRANSITIONS: dict[str, Callable[[Inputs], Transition]] = {
    "constant": lambda x: Constant(retention_decay(x["v"].shape[2])),
    "scalar": lambda x: Scalar(x["log_decay"]),
    "diagonal": lambda x: Diagonal(x["log_decay"]),
    "delta": lambda x: Delta(x["beta"]),
    "gated_delta": lambda x: Delta(x["beta"], x["log_decay"]),
    "diagonal_plus_rank_one": lambda x: DiagonalPlusRankOne(x["log_decay"], x["p"], x["r"]),
}
_GATES: dict[str, tuple[str, ...]] = {
    "scalar": ("log_decay",),
    "diagonal": ("log_decay_channels",),
    "delta": ("beta",),
    "gated_delta": ("log_decay", "beta"),
    "diagonal_plus_rank_one": ("log_decay_channels", "p", "r"),
}


def _recurrence(name: str, about: str) -> Op:
    transition = TRANSITIONS[name]
    kind = {"delta": "delta", "gated_delta": "delta", "diagonal_plus_rank_one": "rank_one"}.get(name, "decay")

    def forward(x: Inputs) -> Array:
        return linear_recurrence(x["q"], x["k"], x["v"], transition=transition(x))[0]

    def step(state: Array, x: Inputs) -> tuple[Array, Array]:
        return linear_recurrence(x["q"], x["k"], x["v"], transition=transition(x), state=state, form="recurrent")

    def flops(time: int, heads: int, width: int) -> int:
        return recurrence_flops(kind, time, heads=heads, key_heads=heads, key_dim=width, value_dim=width)

    def state(batch: int, time: int, heads: int, width: int, dtype: Any) -> Array:
        return jnp.zeros((batch, heads, width, width), jnp.float32)

    return Op(about, _GATES.get(name, ()), forward, flops, state, step)


def _pairs(time: int, heads: int, width: int) -> int:
    return 4 * heads * width * (time * (time + 1) // 2)


def _in_window(time: int, heads: int, width: int) -> int:
    seen = min(time, WINDOW)
    return 4 * heads * width * (seen * (seen + 1) // 2 + (time - seen) * WINDOW)


def _cache(batch: int, time: int, heads: int, width: int, dtype: Any) -> KVCache:
    return KVCache.init(batch, time, heads, width, width, dtype)


def _ring(sinks: int, batch: int, time: int, heads: int, width: int, dtype: Any) -> RingCache:
    return RingCache.init(batch, WINDOW, sinks, heads, width, width, dtype)


def _attend(cache: Any, x: Inputs) -> tuple[Array, Any]:
    return attend(x["q"], x["k"], x["v"], cache)


def _softmax(about: str, forward: Callable[..., Array]) -> Op:
    return Op(about, (), lambda x: forward(x["q"], x["k"], x["v"]), _pairs, _cache, _attend)


def _window(about: str, sinks: int) -> Op:
    def forward(x: Inputs) -> Array:
        return window_attention(x["q"], x["k"], x["v"], window=WINDOW, sinks=sinks)

    return Op(about, (), forward, _in_window, partial(_ring, sinks), _attend)


BASELINES: dict[str, Op] = {
    "softmax_materialised": _softmax(
        "softmax attention, the T x T scores in memory", partial(softmax_attention, form="parallel")
    ),
    "softmax": _softmax("softmax attention by blocks, O(T) memory", softmax_attention),
    "softmax_platform": _softmax("softmax attention, the platform's own kernel", platform_attention),
    "window": _window(f"attention to the last {WINDOW} tokens", 0),
    "window_sinks": _window(f"attention to the last {WINDOW} tokens and the first {SINKS}", SINKS),
}
OPS: dict[str, Op] = BASELINES | {
    "constant": _recurrence("constant", "one decay per head: RetNet, Lightning"),
    "scalar": _recurrence("scalar", "a decay per head and token: Mamba-2, gated retention"),
    "diagonal": _recurrence("diagonal", "a decay per channel and token: GLA, HGRN2, RWKV-6"),
    "delta": _recurrence("delta", "the delta rule: DeltaNet"),
    "gated_delta": _recurrence("gated_delta", "the delta rule and a decay: Gated DeltaNet"),
    "diagonal_plus_rank_one": _recurrence("diagonal_plus_rank_one", "a decay per channel and a rank-one term: RWKV-7"),
}


def draw(op: str, key: Array, *, batch: int, length: int, heads: int, head_dim: int, dtype: Any) -> dict[str, Array]:
    """Inputs of an op: q, k and v ``[B, T, H, K]`` in ``dtype``, what its transition takes beside them.

    Keys of recurrences are of unit length, for a delta rule diverges otherwise; log-decays are natural and in
    (-0.5, 0), write strengths in (0.05, 0.95); both are float32, as in all code that is compared.
    """
    keys = iter(jax.random.split(key, 8))
    shape = (batch, length, heads, head_dim)

    def normal() -> Array:
        return jax.random.normal(next(keys), shape, jnp.float32)

    def unit() -> Array:
        x = normal()
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def uniform(low: float, high: float, *sizes: int) -> Array:
        return jax.random.uniform(next(keys), sizes, jnp.float32, low, high)

    if op in BASELINES:
        return {name: normal().astype(dtype) for name in "qkv"}
    found = {"q": normal() * head_dim**-0.5, "k": unit(), "v": normal()}
    gates = OPS[op].gates
    if "r" in gates:  # RWKV-7's: what stands at a key is read, and written back in part
        found["r"] = unit()
        found["p"] = -found["r"] * uniform(0.05, 0.95, *shape[:3], 1)
    found = {name: x.astype(dtype) for name, x in found.items()}
    if "log_decay" in gates:
        found["log_decay"] = uniform(-0.5, -1e-3, *shape[:3])
    if "log_decay_channels" in gates:
        found["log_decay"] = uniform(-0.5, -1e-3, *shape)
    if "beta" in gates:
        found["beta"] = uniform(0.05, 0.95, *shape[:3])
    return found


def op_program(op: str, mode: str, *, batch: int, length: int, heads: int, head_dim: int, dtype: Any) -> Program:
    """An op forward ("prefill"), forward and backward ("training"), or ``DECODED`` tokens one by one ("decode")."""
    what, sizes = OPS[op], {"batch": batch, "heads": heads, "head_dim": head_dim, "dtype": dtype}
    state = jax.eval_shape(lambda: what.state(1, length, heads, head_dim, dtype))
    if mode == "decode":
        return _decoding(op, length, **sizes)
    flops = batch * what.flops(length, heads, head_dim)
    if mode == "prefill":
        return Program(
            what.forward,
            lambda key: (draw(op, key, length=length, **sizes),),
            batch * length,
            flops,
            tree_bytes(state),
        )

    def arguments(key: Array) -> tuple[Any, ...]:
        first, second = jax.random.split(key)
        weight = jax.random.normal(second, (batch, length, heads, head_dim), dtype)
        return draw(op, first, length=length, **sizes), weight

    return Program(gradient_of(what.forward, 1), arguments, batch * length, 3 * flops, tree_bytes(state))


def _decoding(op: str, length: int, *, batch: int, heads: int, head_dim: int, dtype: Any) -> Program:
    what = OPS[op]

    def arguments(key: Array) -> tuple[Any, ...]:
        first, second = jax.random.split(key)
        state = filled(second, lambda: what.state(batch, length, heads, head_dim, dtype), length - DECODED)
        return state, draw(op, first, batch=batch, length=DECODED, heads=heads, head_dim=head_dim, dtype=dtype)

    def run(state: Any, x: Inputs) -> tuple[Any, Array]:
        tokens = {name: jnp.moveaxis(value, 1, 0)[:, :, None] for name, value in x.items()}
        return jax.lax.scan(lambda state, token: what.step(state, token)[::-1], state, tokens)

    if length <= DECODED:
        raise ValueError(f"lengths: expected more than the {DECODED} tokens that are decoded, got {length}")
    done = batch * (what.flops(length, heads, head_dim) - what.flops(length - DECODED, heads, head_dim))
    held = tree_bytes(jax.eval_shape(lambda: what.state(1, length, heads, head_dim, dtype)))
    return Program(run, arguments, batch * DECODED, done, held, donated=(0,), rounds=DECODED)
