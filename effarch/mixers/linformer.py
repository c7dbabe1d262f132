"""Linformer (2006.04768): attention to keys and values that are projected along time to a fixed number.

    o_t = softmax_r(q_t . (E^T K)_r / sqrt(K)) (F^T V)_r        E, F: [T, R]

Not causal: every query sees every token, and T is fixed by E and F. They are the same for all layers in one of the
paper's variants; here each layer has its own, per head, for all heads, or one for keys and values alike (``share``).
O(T R) time and memory.
"""

from functools import partial
from typing import ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, copy_projections, rows_of_length
from effarch.mixers.softmax_attention import Attention
from effarch.nn.qkv import QKV
from effarch.nn.rotary import rotate
from effarch.ops.attention.reference import dot
from effarch.ops.precision import accumulator
from effarch.registry import register
from effarch.typing import Array, Float


@register("linformer", kind="mixer")
class Linformer(MixerConfig):
    """Softmax attention of low rank, for rows of one length."""

    causal: ClassVar[bool] = False
    fixed_length: ClassVar[bool] = True
    packed: ClassVar[bool] = False
    forms: ClassVar[tuple[str, ...]] = ("parallel",)
    paper: ClassVar[str] = "2006.04768 Linformer: Self-Attention with Linear Complexity"

    length: int = pydantic.Field(512, gt=0, description="tokens of a row")
    rank: int = pydantic.Field(256, gt=0, description="keys and values that are left of them")
    share: Literal["none", "heads", "keys_and_values"] = pydantic.Field(
        "heads", description="who has the same projections: none, all heads, or all heads and keys with values"
    )
    num_heads: int = pydantic.Field(12, gt=0, description="heads")
    head_dim: int = pydantic.Field(64, gt=0, description="width of a head")
    rope_theta: float | None = pydantic.Field(None, gt=0, description="base of rotary wavelengths; null: no rotation")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "LinformerMixer":
        return LinformerMixer(self, dim, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        width = self.num_heads * self.head_dim
        return time * (8 * dim * width + 8 * self.rank * width)

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(length=24, rank=5, share="none", num_heads=4, head_dim=8, rope_theta=1e4), 32


class LinformerMixer(Mixer):
    """The module; see the file."""

    def __init__(self, config: Linformer, dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        heads, width = config.num_heads, config.head_dim
        self.qkv = QKV(dim, heads=heads, kv_heads=heads, key_dim=width, value_dim=width, rngs=rngs)
        groups = heads if config.share == "none" else 1
        shape, std = (groups, config.length, config.rank), config.length**-0.5
        axes = ("heads" if groups == heads else None, None, "rank")

        def along_time() -> nnx.Param:
            return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)

        self.keys = along_time()
        self.values = None if config.share == "keys_and_values" else along_time()

    def _along_time(self, x: Float[Array, "B T H K"], projection: nnx.Param) -> Float[Array, "B R H K"]:
        groups = projection.shape[0]
        grouped = x.reshape(*x.shape[:2], groups, -1)  # heads that share a projection are one wide head
        wide = accumulator(x)  # a sum over the whole row
        y = dot("btgk,gtr->brgk", grouped.astype(wide), projection[...].astype(wide)).astype(x.dtype)
        return y.reshape(x.shape[0], -1, *x.shape[2:])

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        c = self.config
        rows_of_length("linformer", c.length, x, ctx)
        q, k, v = self.qkv(x)
        if c.rope_theta is not None:
            turn = partial(rotate, positions=ctx.positions, theta=c.rope_theta)
            q, k = turn(q), turn(k)
        k = self._along_time(k, self.keys)
        v = self._along_time(v, self.keys if self.values is None else self.values)
        weights = jax.nn.softmax(dot("bthk,brhk->bhtr", q, k) * c.head_dim**-0.5, axis=-1)
        o = dot("bhtr,brhv->bthv", weights.astype(v.dtype), v)
        return self.qkv.o(o.astype(x.dtype)), state, ctx

    def from_attention(self, attention: Attention) -> Self:
        """q, k, v and o of the teacher, its key heads repeated; the projections along time are new. Returns self."""
        copy_projections(attention, q=self.qkv.q, k=self.qkv.k, v=self.qkv.v, o=self.qkv.o)
        return self
