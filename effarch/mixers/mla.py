"""Multi-head latent attention: DeepSeek-V2 (2405.04434), Kimi Linear (2510.26692).

    c_t = RMSNorm(W_c x_t)        k_t = [W_k c_t; r_t] per head, r_t = W_r x_t shared by the heads        v_t = W_v c_t
    o_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s        q_t = W_q x_t, or W_q RMSNorm(W_d x_t) through a rank

What is carried per token is c and r, a latent of a few hundred numbers for all heads. Over a cache the maps W_k and W_v
stand on the other side, q.(W_k c) = (W_k^T q).c and W_v (sum p c): attention of many queries to one key and value.
Without a state keys and values are formed, which costs less. r and its part of q are rotated, by halves where DeepSeek
rotates neighbours; Kimi rotates nothing.
"""

import dataclasses
from functools import partial
from typing import ClassVar, Self

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig
from effarch.nn.linear import Linear
from effarch.nn.norm import RMSNorm
from effarch.nn.rotary import rotate
from effarch.ops.attention import KVCache, attend, softmax_attention
from effarch.registry import register
from effarch.typing import Array


@register("mla", kind="mixer")
class MLA(MixerConfig):
    """Causal softmax attention whose keys and values are linear in a small latent."""

    stands_in_for_attention: ClassVar[bool] = False  # a teacher's keys and values are of full rank, and have no norm
    context_parallel: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "2405.04434 DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model"
    )

    num_heads: int = pydantic.Field(128, gt=0, description="heads")
    head_dim: int = pydantic.Field(128, gt=0, description="of a query or key head, without the part that heads share")
    shared_dim: int = pydantic.Field(64, gt=0, description="of the part of the keys that heads share")
    value_head_dim: int = pydantic.Field(128, gt=0, description="width of a value head")
    rank: int = pydantic.Field(512, gt=0, description="width of the latent of keys and values")
    q_rank: int | None = pydantic.Field(1536, gt=0, description="of the queries' latent; null: none")
    rope_theta: float | None = pydantic.Field(10000.0, gt=0, description="base of the rotary wavelengths; null: none")
    norm_eps: float = pydantic.Field(1e-6, gt=0, description="of the norms of the latents")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "MLAMixer":
        return MLAMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        heads, key_dim, value_dim = self.num_heads, self.head_dim + self.shared_dim, self.value_head_dim
        queries = heads * key_dim * dim if self.q_rank is None else self.q_rank * (dim + heads * key_dim)
        latents = dim * (self.rank + self.shared_dim) + self.rank * heads * (self.head_dim + value_dim)
        per_token = 2 * (queries + latents + heads * value_dim * dim)
        return time * per_token + heads * (key_dim + value_dim) * time * (time + 1)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, head_dim=8, shared_dim=4, value_head_dim=8, rank=12, q_rank=16), 32


class MLAMixer(Mixer):
    """The module; see the file. Its state holds [c; r] of every token; values are a part of the keys."""

    def __init__(self, config: MLA, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = layer.dtype
        heads, wide = config.num_heads, config.head_dim + config.shared_dim
        make = partial(Linear, rngs=rngs)
        self.q_down = None if config.q_rank is None else make(dim, config.q_rank, axes=("embed", "rank"))
        self.q_norm = None if config.q_rank is None else RMSNorm(config.q_rank, eps=config.norm_eps, axes=("rank",))
        self.q = make(
            config.q_rank or dim, (heads, wide), axes=("rank" if config.q_rank else "embed", "heads", "head_dim")
        )
        self.c = make(dim, config.rank, axes=("embed", "rank"))
        self.r = make(dim, config.shared_dim, axes=("embed", None))
        self.c_norm = RMSNorm(config.rank, eps=config.norm_eps, axes=("rank",))
        self.k = make(config.rank, (heads, config.head_dim), axes=("rank", "heads", "head_dim"))
        self.v = make(config.rank, (heads, config.value_head_dim), axes=("rank", "heads", "head_dim"))
        self.o = make((heads, config.value_head_dim), dim, axes=("heads", "head_dim", "embed"))

    def init_state(self, batch_size: int, max_length: int) -> KVCache:
        c = self.config
        return KVCache.init(batch_size, max_length, 1, c.rank + c.shared_dim, 0, self.dtype)

    def _rotate(self, x: Array, ctx: Context) -> Array:
        theta = self.config.rope_theta
        return x if theta is None else rotate(x, ctx.positions, theta)

    def __call__(self, x: Array, state: KVCache | None, ctx: Context) -> tuple[Array, KVCache | None, Context]:
        config = self.config
        q = self.q(x) if self.q_down is None or self.q_norm is None else self.q(self.q_norm(self.q_down(x)))
        q, q_shared = q[..., : config.head_dim], self._rotate(q[..., config.head_dim :], ctx)
        c, r = self.c_norm(self.c(x))[:, :, None], self._rotate(self.r(x)[:, :, None], ctx)
        scale = (config.head_dim + config.shared_dim) ** -0.5
        if state is None:
            k, v = self.k(c[:, :, 0]), self.v(c[:, :, 0])
            k = jnp.concatenate([k, jnp.broadcast_to(r, (*k.shape[:3], r.shape[3]))], axis=-1)
            q = jnp.concatenate([q, q_shared], axis=-1)
            form = "chunkwise" if ctx.form == "recurrent" else ctx.form  # no cache: nothing to recur over
            o = softmax_attention(q, k, v, form=form, segment_ids=ctx.segments, scale=scale)
        else:
            q = jnp.einsum("bthk,rhk->bthr", q, self.k.kernel[...].astype(q.dtype))
            q, k = jnp.concatenate([q, q_shared], axis=-1), jnp.concatenate([c, r], axis=-1)
            seen = dataclasses.replace(state, v=state.k[..., : config.rank])
            o, after = attend(q, k, c, seen, ctx.segments, form=ctx.form, scale=scale)
            o = jnp.einsum("bthr,rhv->bthv", o, self.v.kernel[...].astype(o.dtype))
            state = dataclasses.replace(after, v=state.v)
        return self.o(o), state, ctx
