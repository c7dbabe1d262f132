"""Linear attention (2006.16236): softmax's exponential replaced by a product of features.

    S_t = S_{t-1} + phi(k_t) v_t^T      z_t = z_{t-1} + phi(k_t)      o_t = S_t^T phi(q_t) / (z_t . phi(q_t))
    y_t = W_o o_t

phi is any registered feature map, ``elu + 1`` by default; the mixers named after a map are this one with another
default. z is a column of ones appended to v; a token that gives weight to nothing reads 0. Without ``normalise``,
``o_t = S_t^T phi(q_t) F^-1/2`` for F features, which wants ``output_norm``, an RMSNorm per head.

Departures: grouped key heads, rotary positions (before phi), and ``output_norm``, all off by default, as in
flash-linear-attention. Grouped values are repeated: each query head has a state of its own.
"""

from typing import ClassVar, Self

import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import BiasedConfig, Context, LayerInfo, Mixer, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.feature_map import FeatureMapChoice
from effarch.nn.norm import RMSNorm
from effarch.nn.qkv import QKV
from effarch.nn.rotary import rotate
from effarch.ops.normalised import initial_state, normalised_attention
from effarch.ops.recurrence import Constant, linear_recurrence
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.registry import register
from effarch.typing import Array, PyTree


@register("linear_attention", kind="mixer")
class LinearAttention(BiasedConfig):
    """Linear attention with any feature map."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "constant"
    paper: ClassVar[str] = "2006.16236 Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention"

    num_heads: int = pydantic.Field(8, gt=0, description="query heads")
    num_kv_heads: int | None = pydantic.Field(None, gt=0, description="key and value heads; null: num_heads")
    head_dim: int = pydantic.Field(64, gt=0, description="width of a query or key head, before the feature map")
    value_head_dim: int = pydantic.Field(64, gt=0, description="width of a value head")
    feature_map: FeatureMapChoice = pydantic.Field("elu", validate_default=True, description="phi, for q and k")
    normalise: bool = pydantic.Field(True, description="divide by the sum of the weights")
    output_norm: bool = pydantic.Field(False, description="RMSNorm of each head's output")
    norm_eps: float = pydantic.Field(1e-5, gt=0, description="of the output norm")
    rope_theta: float | None = pydantic.Field(None, gt=0, description="base of rotary wavelengths; null: no rotation")

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_kv_heads: expected a divisor of num_heads {self.num_heads}, got {self.num_kv_heads}")
        return self

    @property
    def kv_heads(self) -> int:
        """Heads of k and v."""
        return self.num_kv_heads or self.num_heads

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "LinearAttentionMixer":
        return LinearAttentionMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        heads, kv_heads = self.num_heads, self.kv_heads
        projections = 2 * dim * (heads + kv_heads) * (self.head_dim + self.value_head_dim)
        maps = (heads + kv_heads) * self.feature_map.flops(self.head_dim)
        return time * (projections + maps) + recurrence_flops(
            "decay",
            time,
            heads=heads,
            key_heads=heads,
            key_dim=self.feature_map.width(self.head_dim),
            value_dim=self.value_head_dim + self.normalise,
        )

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        """Every subclass too, with the tiny feature map of its own."""
        phi = type(cls().feature_map).tiny()
        return cls(num_heads=4, num_kv_heads=2, head_dim=4, value_head_dim=6, feature_map=phi, rope_theta=1e4), 32


class LinearAttentionMixer(Mixer):
    """The module; see the file. Its state: S and z as one array [B, H, F, V + 1] float32, for maps made of exponentials
    also the running maximum [B, Hk] of their log-scale; without ``normalise`` S alone.
    """

    def __init__(self, config: LinearAttention, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.config = config
        heads, kv_heads = config.num_heads, config.kv_heads
        width, value_dim = config.head_dim, config.value_head_dim
        self.qkv = QKV(
            dim, heads=heads, kv_heads=kv_heads, key_dim=width, value_dim=value_dim, **config.biases, rngs=rngs
        )
        self.phi_q = config.feature_map.make(width, heads, rngs=rngs)
        self.phi_k = None if config.feature_map.shared else config.feature_map.make(width, kv_heads, rngs=rngs)
        self.norm = RMSNorm(value_dim, eps=config.norm_eps, axes=(None,)) if config.output_norm else None

    def init_state(self, batch_size: int, max_length: int) -> PyTree:
        c = self.config
        width = c.feature_map.width(c.head_dim)
        if not c.normalise:
            return jnp.zeros((batch_size, c.num_heads, width, c.value_head_dim), jnp.float32)
        scaled = c.feature_map.log_scaled
        return initial_state(batch_size, c.num_heads, c.kv_heads, width, c.value_head_dim, log_scaled=scaled)

    def __call__(self, x: Array, state: PyTree | None, ctx: Context) -> tuple[Array, PyTree | None, Context]:
        c = self.config
        q, k, v = self.qkv(x)
        if c.rope_theta is not None:
            q, k = rotate(q, ctx.positions, c.rope_theta), rotate(k, ctx.positions, c.rope_theta)
        phi_k = self.phi_q if self.phi_k is None else self.phi_k
        q, k = self.phi_q(q, ctx.positions), phi_k(k, ctx.positions)
        v = jnp.repeat(v, c.num_heads // c.kv_heads, axis=2)
        if c.normalise:
            o, after = normalised_attention(q, k, v, state=state, segment_ids=ctx.segments, form=ctx.form)
        else:
            q, k = q.whole() * q.values.shape[-1] ** -0.5, k.whole()
            still = Constant(jnp.zeros((c.num_heads,), jnp.float32))
            o, after = linear_recurrence(
                q, k, v, transition=still, state=state, segment_ids=ctx.segments, form=ctx.form
            )
        y = self.qkv.o(o if self.norm is None else self.norm(o))
        return y, None if state is None else after, ctx

    def from_attention(self, attention: Attention) -> Self:
        """q, k, v and o of the teacher; fewer key heads than ours are repeated. The feature map keeps its initial
        values. Returns self.
        """
        copy_projections(attention, q=self.qkv.q, k=self.qkv.k, v=self.qkv.v, o=self.qkv.o)
        return self
