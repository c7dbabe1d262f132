"""DeltaNet (2406.06484; 2102.11174), as in flash-linear-attention; what all mixers with the delta rule share.

    S_t = (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T        o_t = S_t^T q_t
    b_t = sigmoid(W_b x_t), doubled with negative eigenvalues (2411.12537)        y_t = W_o RMSNorm_head(o_t)

q, k and v pass a short convolution with silu; q and k are l2-normalised, q scaled by K^-1/2. Value head h uses key head
h // (num_heads / num_key_heads). A student may keep its teacher's rotary positions (``rope_theta``). Gated DeltaNet,
KDA and DeltaProduct derive from it: they add a decay, an output gate, or more writes per token.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import BiasedConfig, Context, LayerInfo, Mixer, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.linear import Linear
from effarch.nn.norm import RMSNorm, l2_normalise
from effarch.nn.rotary import rotate
from effarch.nn.short_conv import ShortConv
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import Delta, linear_recurrence
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.registry import register
from effarch.typing import Array


@register("deltanet", kind="mixer")
class DeltaNet(BiasedConfig):
    """The delta rule: what stands at a key is replaced, not added to."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "delta"
    paper: ClassVar[str] = "2406.06484 Parallelizing Linear Transformers with the Delta Rule over Sequence Length"

    num_heads: int = pydantic.Field(16, gt=0, description="value heads")
    num_key_heads: int | None = pydantic.Field(None, gt=0, description="query and key heads; null: num_heads")
    head_dim: int = pydantic.Field(128, gt=0, description="width of a query or key head")
    value_head_dim: int = pydantic.Field(128, gt=0, description="width of a value head")
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

    @property
    def writes(self) -> tuple[int, ...]:
        """The axis of writes per token: none for one."""
        return ()

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "DeltaNetMixer":
        return DeltaNetMixer(self, dim, layer=layer, rngs=rngs)

    def gates(self, dim: int) -> int:
        """Multiply-adds per token of what a variant adds: its decay and its output gate."""
        return 0

    def flops(self, dim: int, time: int) -> int:
        writes = sum(self.writes) or 1
        keys, values = self.key_heads * self.head_dim, self.num_heads * self.value_head_dim
        projections = dim * (keys + values + writes * (keys + values + self.num_heads))
        convolutions = self.conv_width * (keys + writes * (keys + values))
        sizes = {"key_dim": self.head_dim, "value_dim": self.value_head_dim}
        core = recurrence_flops("delta", writes * time, heads=self.num_heads, key_heads=self.key_heads, **sizes)
        return 2 * time * (projections + convolutions + self.gates(dim)) + core

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, num_key_heads=2, head_dim=8, value_head_dim=8, rope_theta=1e4), 32


class DeltaNetMixer(Mixer):
    """The module; see the file. Its state: S [B, H, K, V] float32, and the last inputs of the convolution."""

    recurrence: ClassVar[Callable[..., tuple[Array, Array]]] = staticmethod(linear_recurrence)

    def __init__(self, config: DeltaNet, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = layer.dtype
        heads, keys, values = config.num_heads, (config.key_heads, config.head_dim), config.value_head_dim
        n = config.writes
        apart = (None,) * len(n)
        project = partial(Linear, dim, rngs=rngs)
        biased = partial(project, bias=config.qkv_bias)
        self.q = biased(keys, axes=("embed", "heads", "head_dim"))
        self.k = biased((*n, *keys), axes=("embed", *apart, "heads", "head_dim"))
        self.v = biased((*n, heads, values), axes=("embed", *apart, "heads", "head_dim"))
        self.b = project((*n, heads), axes=("embed", *apart, "heads"))
        channels = sum(part.kernel.size // dim for part in (self.q, self.k, self.v))
        self.conv = ShortConv(channels, config.conv_width, rngs=rngs)
        self.norm = RMSNorm(values, eps=config.norm_eps, axes=(None,))
        self.o = Linear((heads, values), dim, axes=("heads", "head_dim", "embed"), bias=config.out_bias, rngs=rngs)

    def init_state(self, batch_size: int, max_length: int) -> tuple[Array, Array]:
        c = self.config
        s = jnp.zeros((batch_size, c.num_heads, c.head_dim, c.value_head_dim), jnp.float32)
        return s, self.conv.init_state(batch_size, self.dtype)

    def log_decay(self, x: Array) -> Array | None:
        """Natural-log decays ``[B, T, H]`` or ``[B, T, H, K]``; None: nothing decays."""
        return None

    def gated(self, o: Array, x: Array) -> Array:
        """What a variant's output gate makes of the normed ``o [B, T, H, V]``."""
        return o

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        c = self.config
        s, conv_state = (None, None) if state is None else state
        (q, k, v), conv_state = self.conv.together([self.q(x), self.k(x), self.v(x)], conv_state, ctx.segments)
        q, k = l2_normalise(q), l2_normalise(k)
        if c.rope_theta is not None:
            flat = k.reshape(*q.shape[:2], -1, c.head_dim)  # the heads of all writes
            q, k = rotate(q, ctx.positions, c.rope_theta), rotate(flat, ctx.positions, c.rope_theta).reshape(k.shape)
        q = q * jnp.asarray(c.head_dim**-0.5, q.dtype)
        beta = jax.nn.sigmoid(self.b(x).astype(accumulator(x))) * (2.0 if c.negative_eigenvalues else 1.0)
        transition = Delta(beta, self.log_decay(x))
        o, s = self.recurrence(q, k, v, transition=transition, state=s, segment_ids=ctx.segments, form=ctx.form)
        y = self.o(self.gated(self.norm(o), x))
        return y, None if state is None else (s, conv_state), ctx

    def from_attention(self, attention: Attention) -> Self:
        """q, k, v and o of the teacher, its key heads repeated; convolutions vanish but for their silu.

        Every write of a token starts with the teacher's key and value. Returns self.
        """
        copy_projections(attention, q=self.q, k=self.k, v=self.v, o=self.o)
        self.conv.vanish()
        return self
