"""Mamba-2: state space duality (2405.21060).

    S_t = a_t S_{t-1} + B_t (dt_t x_t)^T        y_t = S_t^T C_t + D x_t        S: [B, H, N, P]
    log a_t = -e^A dt_t        dt_t = softplus(W_dt u_t + dt_bias), both per head
    out = W_o RMSNorm_group(y_t * silu(W_z u_t))

x, B and C, maps of the input u, pass one short convolution with bias and silu. In the recurrence's letters B is k, C is
q and dt x is v; B and C are shared by the heads of a group. The input projections stand apart: the ``in_proj`` of other
code holds the rows of z, x, B, C and dt one after the other, its ``conv1d`` the channels of x, B and C, its states are
[P, N]. The model has no feed-forward layers.
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
from effarch.nn.norm import RMSNorm
from effarch.nn.short_conv import ShortConv
from effarch.ops.channels import over_tokens
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import Scalar, linear_recurrence
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.registry import register
from effarch.typing import Array


@register("mamba2", kind="mixer")
class Mamba2(MixerConfig):
    """State space duality: a decay per head and token. num_heads * head_dim is usually twice the model's width."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "scalar"
    paper: ClassVar[str] = "2405.21060 Transformers are SSMs: Generalized Models and Efficient Algorithms (Mamba-2)"

    num_heads: int = pydantic.Field(24, gt=0, description="heads H")
    head_dim: int = pydantic.Field(64, gt=0, description="channels P of x in a head")
    state_dim: int = pydantic.Field(128, gt=0, description="width N of B and C")
    num_groups: int = pydantic.Field(1, gt=0, description="heads of B and C, and groups of the norm; divides num_heads")
    conv_width: int = pydantic.Field(4, gt=0, description="taps of the short convolution")
    norm_eps: float = pydantic.Field(1e-5, gt=0, description="of the norm per group")

    @pydantic.model_validator(mode="after")
    def _grouped(self) -> Self:
        if self.num_heads % self.num_groups:
            raise ValueError(f"num_groups: expected a divisor of num_heads {self.num_heads}, got {self.num_groups}")
        return self

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "Mamba2Mixer":
        return Mamba2Mixer(self, dim, layer=layer, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        inner, shared = self.num_heads * self.head_dim, self.num_groups * self.state_dim
        projections = 2 * dim * (3 * inner + 2 * shared + self.num_heads)
        convolution = 2 * self.conv_width * (inner + 2 * shared)
        return time * (projections + convolution) + recurrence_flops(
            "decay",
            time,
            heads=self.num_heads,
            key_heads=self.num_groups,
            key_dim=self.state_dim,
            value_dim=self.head_dim,
        )

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, head_dim=8, state_dim=8, num_groups=2), 32

    def matching(self, attention: MixerConfig) -> Self:
        """As for every mixer; the state is as wide as the teacher's heads, and each head has its own B and C."""
        matched = super().matching(attention)
        sizes = {"state_dim": getattr(attention, "head_dim", self.state_dim), "num_groups": matched.num_heads}
        fields = type(self).model_fields
        return matched.replace(**{k: x for k, x in sizes.items() if getattr(self, k) == fields[k].default})


class Mamba2Mixer(Mixer):
    """The module; see the file. Its state: S [B, H, N, P] float32, and the last inputs of the convolution."""

    def __init__(self, config: Mamba2, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = layer.dtype
        heads, groups, width, state_dim = config.num_heads, config.num_groups, config.head_dim, config.state_dim
        project = partial(Linear, dim, axes=("embed", "heads", "head_dim"), rngs=rngs)
        self.z, self.x = project((heads, width)), project((heads, width))
        self.b, self.c = project((groups, state_dim)), project((groups, state_dim))
        self.dt = Linear(dim, heads, axes=("embed", "heads"), rngs=rngs)
        log_rate, dt = decay_rates(rngs, (heads,), smallest=1.0)
        self.log_rate = nnx.Param(log_rate, axes=("heads",))
        self.dt_bias = nnx.Param(dt, axes=("heads",))
        self.skip = nnx.Param(jnp.ones((heads,), jnp.float32), axes=("heads",))
        inner = heads * width
        self.conv = ShortConv(inner + 2 * groups * state_dim, config.conv_width, bias=True, rngs=rngs)
        self.norm = RMSNorm(inner // groups, heads=groups, eps=config.norm_eps, axes=("heads", None))
        self.o = Linear((heads, width), dim, axes=("heads", "head_dim", "embed"), rngs=rngs)

    def init_state(self, batch_size: int, max_length: int) -> tuple[Array, Array]:
        c = self.config
        s = jnp.zeros((batch_size, c.num_heads, c.state_dim, c.head_dim), jnp.float32)
        return s, self.conv.init_state(batch_size, self.dtype)

    def step(self, x: Array) -> Array:
        """Step sizes ``[B, T, H]``, in the accumulator's dtype."""
        dt = self.dt(x).astype(accumulator(x))
        return jax.nn.softplus(dt + over_tokens(self.dt_bias[...], dt))

    def mixing_matrix(self, x: Array, ctx: Context, *, weights: bool = False) -> Array:
        """M with the step sizes of what is written, and the skip on its diagonal."""
        matrix = super().mixing_matrix(x, ctx, weights=weights)
        step = jnp.swapaxes(self.step(x), 1, 2)[:, :, None]  # of the token that was written: a column each
        real = jnp.ones(x.shape[1], bool)[None] if ctx.segments is None else ctx.segments.real
        skip = jnp.eye(x.shape[1], dtype=matrix.dtype)[None, None] * real[:, None, None].astype(matrix.dtype)
        return matrix * step + skip * self.skip[...].astype(matrix.dtype)[None, :, None, None]

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        s, conv_state = (None, None) if state is None else state
        (u, b, c), conv_state = self.conv.together([self.x(x), self.b(x), self.c(x)], conv_state, ctx.segments)
        wide = accumulator(x)
        step = self.step(x)
        log_decay = -over_tokens(jnp.exp(self.log_rate[...].astype(wide)), step) * step
        v = (u.astype(wide) * step[..., None]).astype(u.dtype)
        o, s = linear_recurrence(
            c, b, v, transition=Scalar(log_decay), state=s, segment_ids=ctx.segments, form=ctx.form
        )
        o = (o + over_tokens(self.skip[...], step).astype(u.dtype)[..., None] * u) * jax.nn.silu(self.z(x))
        grouped = o.reshape(*o.shape[:2], self.config.num_groups, -1)
        y = self.o(self.norm(grouped).reshape(o.shape))
        return y, None if state is None else (s, conv_state), ctx

    def from_attention(self, attention: Attention) -> Self:
        """x, B, C and o are v, k, q (with the K^-1/2 of its scores) and o of the teacher, key heads repeated.

        The convolution vanishes but for its silu; z, dt, decays and the norm are new. Returns self.
        """
        scale = self.config.state_dim**-0.5
        copy_projections(attention, q=self.c, k=self.b, v=self.x, o=self.o, scale=scale)
        self.conv.vanish()
        return self
