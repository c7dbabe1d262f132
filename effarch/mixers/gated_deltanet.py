"""Gated DeltaNet (2412.06464), as in flash-linear-attention and Qwen3-Next.

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T        o_t = S_t^T q_t
    log a_t = -e^A softplus(W_a x_t + dt)        b_t = sigmoid(W_b x_t), doubled with negative eigenvalues
    y_t = W_o (RMSNorm_head(o_t) * silu(W_g x_t))

q, k and v pass a short convolution with silu; q and k are l2-normalised, q scaled by K^-1/2. Value head h uses key head
h // (num_heads / num_key_heads). A student may keep its teacher's rotary positions (``rope_theta``).
"""

from functools import partial
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import Context, LayerInfo, Mixer, MixerConfig, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.decay import decay_rates
from effarch.nn.linear import Linear
from effarch.nn.norm import RMSNorm, l2_normalise
from effarch.nn.rotary import rotate
from effarch.nn.short_conv import ShortConv
from effarch.ops.channels import over_tokens
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import Delta, linear_recurrence
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.registry import register
from effarch.typing import Array


@register("gated_deltanet", kind="mixer")
class GatedDeltaNet(MixerConfig):
    """The delta rule with a decay per head and token."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "delta"
    paper: ClassVar[str] = "2412.06464 Gated Delta Networks: Improving Mamba2 with Delta Rule"

    num_heads: int = pydantic.Field(6, gt=0, description="value heads")
    num_key_heads: int | None = pydantic.Field(None, gt=0, description="query and key heads; null: num_heads")
    head_dim: int = pydantic.Field(256, gt=0, description="width of a query or key head")
    value_head_dim: int = pydantic.Field(512, gt=0, description="width of a value head")
    conv_width: int = pydantic.Field(4, gt=0, description="taps of the short convolutions")
    rope_theta: float | None = pydantic.Field(None, gt=0, description="base of rotary wavelengths; null: no rotation")
    negative_eigenvalues: bool = pydantic.Field(False, description="write strengths in (0, 2) instead of (0, 1)")
    norm_eps: float = pydantic.Field(1e-6, gt=0, description="of the norm per head")

    @pydantic.model_validator(mode="after")
    def _grouped(self) -> Self:
        if self.num_heads % self.key_heads:
            raise ValueError(
                f"num_key_heads: expected a divisor of num_heads {self.num_heads}, got {self.num_key_heads}"
            )
        return self

    @property
    def key_heads(self) -> int:
        """Heads of q and k."""
        return self.num_key_heads or self.num_heads

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "GatedDeltaNetMixer":
        return GatedDeltaNetMixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        keys, values = self.key_heads * self.head_dim, self.num_heads * self.value_head_dim
        projections = 2 * dim * (2 * keys + 3 * values + 2 * self.num_heads)
        convolutions = 2 * self.conv_width * (2 * keys + values)
        return time * (projections + convolutions) + recurrence_flops(
            "delta",
            time,
            heads=self.num_heads,
            key_heads=self.key_heads,
            key_dim=self.head_dim,
            value_dim=self.value_head_dim,
        )

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, num_key_heads=2, head_dim=8, value_head_dim=8, rope_theta=1e4), 32


class GatedDeltaNetMixer(Mixer):
    """The module; see the file. Its state: S [B, H, K, V] float32, and the last inputs of the convolution."""

    def __init__(self, config: GatedDeltaNet, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = layer.dtype
        heads, key_heads, key_dim, value_dim = (
            config.num_heads,
            config.key_heads,
            config.head_dim,
            config.value_head_dim,
        )
        project = partial(Linear, dim, axes=("embed", "heads", "head_dim"), rngs=rngs)
        self.q, self.k = project((key_heads, key_dim)), project((key_heads, key_dim))
        self.v, self.gate = project((heads, value_dim)), project((heads, value_dim))
        self.a = Linear(dim, heads, axes=("embed", "heads"), rngs=rngs)
        self.b = Linear(dim, heads, axes=("embed", "heads"), rngs=rngs)
        log_rate, dt = decay_rates(rngs, (heads,))
        self.log_rate = nnx.Param(log_rate, axes=("heads",))
        self.dt_bias = nnx.Param(dt, axes=("heads",))
        self.conv = ShortConv(2 * key_heads * key_dim + heads * value_dim, config.conv_width, rngs=rngs)
        self.norm = RMSNorm(value_dim, eps=config.norm_eps, axes=(None,))
        self.o = Linear((heads, value_dim), dim, axes=("heads", "head_dim", "embed"), rngs=rngs)

    def init_state(self, batch_size: int, max_length: int) -> tuple[Array, Array]:
        c = self.config
        s = jnp.zeros((batch_size, c.num_heads, c.head_dim, c.value_head_dim), jnp.float32)
        return s, self.conv.init_state(batch_size, self.dtype)

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        c = self.config
        s, conv_state = (None, None) if state is None else state
        (q, k, v), conv_state = self.conv.together([self.q(x), self.k(x), self.v(x)], conv_state, ctx.segments)
        q, k = l2_normalise(q), l2_normalise(k)
        if c.rope_theta is not None:
            q, k = rotate(q, ctx.positions, c.rope_theta), rotate(k, ctx.positions, c.rope_theta)
        q = q * jnp.asarray(c.head_dim**-0.5, q.dtype)
        wide = accumulator(x)
        a = self.a(x).astype(wide)
        step = jax.nn.softplus(a + over_tokens(self.dt_bias[...], a))
        log_decay = -over_tokens(jnp.exp(self.log_rate[...].astype(wide)), step) * step
        beta = jax.nn.sigmoid(self.b(x).astype(wide)) * (2.0 if c.negative_eigenvalues else 1.0)
        o, s = linear_recurrence(
            q, k, v, transition=Delta(beta, log_decay), state=s, segment_ids=ctx.segments, form=ctx.form
        )
        y = self.o(self.norm(o) * jax.nn.silu(self.gate(x)))
        return y, None if state is None else (s, conv_state), ctx

    def from_attention(self, attention: Attention) -> Self:
        """q, k, v and o of the teacher, its key heads repeated; convolutions vanish but for their silu.

        Returns self.
        """
        copy_projections(attention, q=self.q, k=self.k, v=self.v, o=self.o)
        self.conv.vanish()
        return self
