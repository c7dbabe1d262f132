"""Softmax attention (1706.03762) with grouped queries (2305.13245) and rotary positions (2104.09864).

    o_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s        y_t = W_o (o_t * sigmoid(W_g x_t))

The gate (2505.06708, Qwen3-Next), biases, norms of q and k, and a rotation of some channels only are options.
The teacher of every distillation, and the baseline of every measurement. Its state is the KV cache.
"""

from functools import partial
from typing import ClassVar, Protocol, Self

import jax
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, copy_kernel, expand_heads
from effarch.nn.linear import Linear
from effarch.nn.norm import RMSNorm
from effarch.nn.qkv import QKV
from effarch.nn.rotary import rotate
from effarch.ops.attention import KVCache, attend, softmax_attention
from effarch.registry import register
from effarch.typing import Array


@register("softmax_attention", kind="mixer")
class SoftmaxAttention(MixerConfig):
    """Causal softmax attention."""

    paper: ClassVar[str] = "1706.03762 Attention Is All You Need"

    num_heads: int = pydantic.Field(8, gt=0, description="query heads")
    num_kv_heads: int = pydantic.Field(8, gt=0, description="key and value heads; divides num_heads")
    head_dim: int = pydantic.Field(64, gt=0, description="width of a head")
    rope_theta: float | None = pydantic.Field(10000.0, gt=0, description="base of the rotary wavelengths; null: none")
    rope_fraction: float = pydantic.Field(
        1.0, gt=0, le=1, description="of a head's channels that is rotated, the first"
    )
    qkv_bias: bool = pydantic.Field(False, description="biases on q, k and v")
    out_bias: bool = pydantic.Field(False, description="bias on the output projection")
    qk_norm: bool = pydantic.Field(False, description="RMSNorm on q and k per head")
    qk_norm_plus_one: bool = pydantic.Field(False, description="those norms multiply by 1 + w")
    gate: bool = pydantic.Field(False, description="outputs times sigmoid(W x), per head and channel")

    @pydantic.model_validator(mode="after")
    def _grouped(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads: expected a divisor of num_heads {self.num_heads}, got {self.num_kv_heads}")
        return self

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> Mixer:
        return SoftmaxAttentionMixer(self, dim, layer=layer, rngs=rngs)

    def projection_flops(self, dim: int) -> int:
        """Operations per token outside the attention itself."""
        return 2 * dim * self.head_dim * ((3 if self.gate else 2) * self.num_heads + 2 * self.num_kv_heads)

    def flops(self, dim: int, time: int) -> int:
        return time * self.projection_flops(dim) + 2 * self.num_heads * self.head_dim * time * (time + 1)

    def matching(self, attention: MixerConfig) -> Self:
        """Mixers that compute softmax attention take over all that their teacher's config says of it."""
        taken = super().matching(attention)
        if not isinstance(attention, SoftmaxAttention):
            return taken
        fields = SoftmaxAttention.model_fields
        untouched = [name for name in fields if getattr(taken, name) == type(self).model_fields[name].default]
        return taken.replace(**{name: getattr(attention, name) for name in untouched})

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, num_kv_heads=2, head_dim=8), 32


class Attention(Mixer):
    """Projections and rotary positions, shared by the mixers that compute softmax attention."""

    def __init__(self, config: SoftmaxAttention, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = layer.dtype
        self.qkv = QKV(
            dim,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            key_dim=config.head_dim,
            value_dim=config.head_dim,
            bias=config.qkv_bias,
            out_bias=config.out_bias,
            rngs=rngs,
        )
        norm = partial(RMSNorm, config.head_dim, plus_one=config.qk_norm_plus_one, axes=(None,))
        self.q_norm = norm() if config.qk_norm else None
        self.k_norm = norm() if config.qk_norm else None
        heads = (config.num_heads, config.head_dim)
        gate = partial(Linear, dim, heads, axes=("embed", "heads", "head_dim"), rngs=rngs)
        self.gate = gate() if config.gate else None

    def rotate(self, x: Array, positions: Array) -> Array:
        """Rotary positions, where the config has them."""
        c = self.config
        return x if c.rope_theta is None else rotate(x, positions, c.rope_theta, fraction=c.rope_fraction)

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """q, k, v before rotation."""
        q, k, v = self.qkv(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def output(self, o: Array, x: Array) -> Array:
        """The outputs of all heads, gated where the config says so, projected back; x is what the mixer was given."""
        return self.qkv.o(o if self.gate is None else o * jax.nn.sigmoid(self.gate(x)))

    def from_attention(self, attention: "Attention") -> Self:
        """Copies the projections (and norms); fewer key heads in the teacher are repeated. Returns self."""
        pairs = [(name, getattr(self.qkv, name), getattr(attention.qkv, name)) for name in ("q", "k", "v")]
        if self.gate is not None and attention.gate is not None:
            pairs.append(("gate", self.gate, attention.gate))
        for name, mine, theirs in pairs:
            heads = mine.kernel.shape[-2]
            copy_kernel(mine.kernel, expand_heads(theirs.kernel[...], heads), name)
            if mine.bias is not None and theirs.bias is not None:
                copy_kernel(mine.bias, expand_heads(theirs.bias[...], heads), name)
        mine, theirs = self.qkv.o, attention.qkv.o
        copy_kernel(mine.kernel, theirs.kernel[...], "o")
        if mine.bias is not None and theirs.bias is not None:
            copy_kernel(mine.bias, theirs.bias[...], "o")
        for mine, theirs in ((self.q_norm, attention.q_norm), (self.k_norm, attention.k_norm)):
            if mine is not None and theirs is not None:
                copy_kernel(mine.weight, theirs.weight[...], "norm")
        return self


class SoftmaxAttentionMixer(Attention):
    """The module; see the file."""

    def init_state(self, batch_size: int, max_length: int) -> KVCache:
        c = self.config
        return KVCache.init(batch_size, max_length, c.num_kv_heads, c.head_dim, c.head_dim, self.dtype)

    def __call__(self, x: Array, state: KVCache | None, ctx: Context) -> tuple[Array, KVCache | None, Context]:
        q, k, v = self.project(x)
        q, k = self.rotate(q, ctx.positions), self.rotate(k, ctx.positions)
        if state is None:
            form = "chunkwise" if ctx.form == "recurrent" else ctx.form  # no cache: nothing to recur over
            o = softmax_attention(q, k, v, form=form, segment_ids=ctx.segments)
        else:
            o, state = attend(q, k, v, state, ctx.segments, form=ctx.form)
        return self.output(o, x), state, ctx


class StandIn(Protocol):
    """A mixer whose config has ``stands_in_for_attention``."""

    def from_attention(self, attention: Attention) -> Mixer:
        """Takes over what it can use of a teacher's weights; returns itself."""
        ...
