"""Softmax attention (1706.03762) with grouped queries (2305.13245) and rotary positions (2104.09864).

    o_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s        y_t = W_o (o_t * sigmoid(W_g x_t))

The gate (2505.06708, Qwen3-Next), biases, norms of q and k, another scale, a cap on the logits (Gemma 2, 2408.00118), a
rotation of some channels only and scalings of its wavelengths are options.
The teacher of every distillation, and the baseline of every measurement. Its state is the KV cache.
"""

from functools import partial
from typing import ClassVar, Protocol, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, copy_kernel, expand_heads
from effarch.nn.linear import Linear
from effarch.nn.norm import RMSNorm
from effarch.nn.qkv import QKV, Projections
from effarch.nn.rope_scaling import RopeScalingChoice
from effarch.nn.rotary import rotate
from effarch.ops.attention import KVCache, attend, softmax_attention
from effarch.registry import register
from effarch.typing import Array


@register("softmax_attention", kind="mixer")
class SoftmaxAttention(MixerConfig):
    """Causal softmax attention."""

    context_parallel: ClassVar[bool] = True
    paper: ClassVar[str] = "1706.03762 Attention Is All You Need"
    caps_logits: ClassVar[bool] = True  # it has logit_cap; sparse patterns do not

    num_heads: int = pydantic.Field(8, gt=0, description="query heads")
    num_kv_heads: int = pydantic.Field(8, gt=0, description="key and value heads; divides num_heads")
    head_dim: int = pydantic.Field(64, gt=0, description="width of a head")
    rope_theta: float | None = pydantic.Field(10000.0, gt=0, description="base of the rotary wavelengths; null: none")
    rope_fraction: float = pydantic.Field(
        1.0, gt=0, le=1, description="of a head's channels that is rotated, the first"
    )
    rope_scaling: RopeScalingChoice | None = pydantic.Field(
        None, description="of the rotary wavelengths, for contexts longer than those of pretraining; null: none"
    )
    qkv_bias: bool = pydantic.Field(False, description="biases on q, k and v")
    out_bias: bool = pydantic.Field(False, description="bias on the output projection")
    qk_norm: bool = pydantic.Field(False, description="RMSNorm on q and k per head")
    qk_norm_plus_one: bool = pydantic.Field(False, description="those norms multiply by 1 + w")
    qk_norm_eps: float = pydantic.Field(1e-6, gt=0, description="of those norms")
    query_scale: float | None = pydantic.Field(None, gt=0, description="multiplies q . k; null: head_dim^-1/2")
    logit_cap: float | None = pydantic.Field(None, gt=0, description="cap * tanh(q . k / cap), scaled; null: none")
    gate: bool = pydantic.Field(False, description="outputs times sigmoid(W x), per head and channel")

    @pydantic.model_validator(mode="after")
    def _grouped(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads: expected a divisor of num_heads {self.num_heads}, got {self.num_kv_heads}")
        if self.logit_cap is not None and not self.caps_logits:
            raise ValueError(f"logit_cap: expected null, {self.type_name} does not cap logits, got {self.logit_cap:g}")
        return self

    @property
    def query_factor(self) -> float:
        """Multiplies q beside the ``head_dim^-1/2`` of every attention."""
        return 1.0 if self.query_scale is None else self.query_scale * self.head_dim**0.5

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
        taken_over = {name: getattr(attention, name) for name in untouched}
        if not self.caps_logits:  # it comes as close as it can
            taken_over.pop("logit_cap", None)
        return taken.replace(**taken_over)

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
        norm = partial(RMSNorm, config.head_dim, eps=config.qk_norm_eps, plus_one=config.qk_norm_plus_one, axes=(None,))
        self.q_norm = norm() if config.qk_norm else None
        self.k_norm = norm() if config.qk_norm else None
        heads = (config.num_heads, config.head_dim)
        gate = partial(Linear, dim, heads, axes=("embed", "heads", "head_dim"), rngs=rngs)
        self.gate = gate() if config.gate else None

    def rotate(self, x: Array, ctx: Context, positions: Array | None = None) -> Array:
        """Rotary positions, where the config has them: those of the tokens, or others."""
        c = self.config
        if c.rope_theta is None:
            return x
        at = ctx.positions if positions is None else positions
        reach = ctx.reach if c.rope_scaling is not None and c.rope_scaling.by_reach else None
        return rotate(x, at, c.rope_theta, fraction=c.rope_fraction, scaling=c.rope_scaling, reach=reach)

    def project(self, x: Array, projections: Projections | None = None) -> tuple[Array, Array, Array]:
        """q, k, v before rotation; q lacks ``head_dim^-1/2``. ``projections``: in the place of the mixer's own."""
        q, k, v = (self.qkv if projections is None else projections)(x)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        factor = self.config.query_factor
        return q if factor == 1 else q * jnp.asarray(factor, q.dtype), k, v

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
        q, k = self.rotate(q, ctx), self.rotate(k, ctx)
        if state is None:
            form = "chunkwise" if ctx.form == "recurrent" else ctx.form  # no cache: nothing to recur over
            o = softmax_attention(q, k, v, form=form, segment_ids=ctx.segments, cap=self.config.logit_cap)
        else:
            o, state = attend(q, k, v, state, ctx.segments, form=ctx.form, cap=self.config.logit_cap)
        return self.output(o, x), state, ctx


class StandIn(Protocol):
    """A mixer whose config has ``stands_in_for_attention``."""

    def from_attention(self, attention: Attention) -> Mixer:
        """Takes over what it can use of a teacher's weights; returns itself."""
        ...
