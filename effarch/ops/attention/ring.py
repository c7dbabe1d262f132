"""Softmax attention over a sequence that is split over devices: ring attention (2310.01889).

Every device keeps its queries; keys and values go around. At each turn a device adds what its queries read from the
shard that has arrived, by the log of the softmax's sum, and sends the shard on. The backward pass goes around once more
with the gradients of keys and values, which so come home; scores are recomputed. So nothing of size T is ever on one
device: O(T / devices) memory, and bytes per hop.

Departs from later work in that shards are not balanced (striped, zig-zag): of a causal row the last device computes
most and the first waits, nearly twice the time of a balanced split.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from effarch.ops.attention.blockwise import BLOCK, backward_blocks, forward_blocks
from effarch.ops.attention.reference import EMPTY, Visibility, shield, zero_padding
from effarch.ops.context import on_shards
from effarch.ops.precision import accumulator
from effarch.ops.segments import Segments
from effarch.typing import Array, Float, Int, PyTree


def ring_attention(
    q: Float[Array, "B T Hq D"],
    k: Float[Array, "B T Hk D"],
    v: Float[Array, "B T Hk V"],
    row: Segments,
    *,
    causal: bool = True,
    scale: float,
    cap: float | None = None,
    bias: Float[Array, "B T Hq P"] | None = None,
    block_size: int = BLOCK,
    mesh: Mesh,
    axis: str,
) -> Float[Array, "B T Hq V"]:
    """`reference.attention` of a row, split over mesh axis ``axis``; other mesh axes stay automatic.

    Args:
      row: runs and positions of the tokens.
      bias: per token; its difference between query and key is added to the logits, see `attention_and_logsumexp`.
    """
    turns = _Turns(float(scale), cap, causal, block_size, mesh.shape[axis], axis)

    def shard(tokens: PyTree, _: PyTree) -> tuple[Array, PyTree]:
        q, k, v, bias, run, position = tokens
        q, (k, v) = zero_padding(q, run), shield(k, v, run)
        return zero_padding(_around(turns, q, bias, run, position, k, v, bias), run), ()

    return on_shards(shard, (q, k, v, bias, row.run, row.position), (), mesh=mesh, axis=axis)[0]


@dataclasses.dataclass(frozen=True)
class _Turns:
    """What does not change from turn to turn."""

    scale: float
    cap: float | None
    causal: bool
    block_size: int
    devices: int
    axis: str

    def send(self, keys: PyTree) -> PyTree:
        """To the next device."""
        pairs = [(i, (i + 1) % self.devices) for i in range(self.devices)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, pairs), keys)

    def go(self, turn, start: PyTree) -> PyTree:
        """As many turns as devices: what is sent comes home."""
        return jax.lax.scan(lambda carry, _: (turn(carry), None), start, None, length=self.devices)[0]

    def visible(self, run: Int[Array, "B T"], position: Int[Array, "B T"], run_k, position_k) -> Visibility:
        return Visibility(run, position, run_k, position_k, causal=self.causal)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _around(turns: _Turns, q, bias_q, run, position, k, v, bias_k) -> Float[Array, "B T Hq V"]:
    return _forward(turns, q, bias_q, run, position, k, v, bias_k)[0]


def _forward(turns: _Turns, q, bias_q, run, position, k, v, bias_k):
    def turn(carry):
        o, logsumexp, keys = carry
        k, v, bias_k, run_k, position_k = keys
        bias = None if bias_q is None else (bias_q, bias_k)
        seen = turns.visible(run, position, run_k, position_k)
        part, of_part = forward_blocks(turns.scale, turns.cap, turns.block_size, q, k, v, bias, seen)
        top = jnp.maximum(logsumexp, of_part)
        old, new = jnp.exp(logsumexp - top), jnp.exp(of_part - top)
        total = old + new
        o = (o * old[..., None] + part.astype(o.dtype) * new[..., None]) / total[..., None]
        return o, top + jnp.log(total), turns.send(keys)

    zeros = partial(jnp.zeros_like, q, dtype=accumulator(q))
    start = zeros(shape=(*q.shape[:3], v.shape[3])), zeros(shape=q.shape[:3]) + EMPTY
    o, logsumexp, _ = turns.go(turn, (*start, (k, v, bias_k, run, position)))
    return o.astype(q.dtype), logsumexp


def _around_fwd(turns: _Turns, q, bias_q, run, position, k, v, bias_k):
    o, logsumexp = _forward(turns, q, bias_q, run, position, k, v, bias_k)
    return o, (q, bias_q, run, position, k, v, bias_k, o, logsumexp)


def _around_bwd(turns: _Turns, residuals, do):
    q, bias_q, run, position, k, v, bias_k, o, logsumexp = residuals

    def turn(carry):
        sums, (keys, of_keys) = carry
        k, v, bias_k, run_k, position_k = keys
        bias = None if bias_q is None else (bias_q, bias_k)
        seen = turns.visible(run, position, run_k, position_k)
        saved, gradients = (q, k, v, bias, seen, o, logsumexp), (do, jnp.zeros_like(logsumexp))
        dq, dk, dv, dbias, _ = backward_blocks(turns.scale, turns.cap, turns.block_size, saved, gradients)
        dbias = None if dbias is None else dbias[1]
        more = jax.tree.map(lambda x, y: x + y.astype(x.dtype), (sums, of_keys), (dq, (dk, dv, dbias)))
        return more[0], turns.send((keys, more[1]))

    wide = partial(jax.tree.map, lambda x: jnp.zeros_like(x, dtype=accumulator(q)))
    keys = (k, v, bias_k, run, position)
    dq, (_, of_keys) = turns.go(turn, (wide(q), (keys, wide((k, v, bias_k)))))
    dk, dv, dbias_k = jax.tree.map(lambda x, y: x.astype(y.dtype), of_keys, (k, v, bias_k))
    dbias_q = jax.tree.map(jnp.zeros_like, bias_q)  # a softmax does not move with its query's bias
    return dq.astype(q.dtype), dbias_q, None, None, dk, dv, dbias_k


_around.defvjp(_around_fwd, _around_bwd)
