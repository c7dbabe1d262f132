"""The matrix LSTM: xLSTM (2405.04517), in the parameterisation of xLSTM-7B (2503.13427).

    C_t = f_t C_{t-1} + i_t k_t v_t^T        n_t = f_t n_{t-1} + i_t k_t
    h_t = C_t^T q_t / max(|n_t . q_t|, 1)        y_t = W_o (LayerNorm_head(h_t) * sigmoid(W_g x_t))
    f = sigmoid(cap(W_f x + b_f)), i = exp(cap(W_i x + b_i)), both per head        cap(z) = 15 tanh(z / 15)

C and n are held divided by e^m, m the running maximum (``effarch.ops.stabiliser``), and n is a last column of C,
written by a channel of ones behind v. As in the released code, 1e-6 is added to the denominator *after* the division by
e^m. q is scaled by K^-1/2. A student may keep its teacher's rotary positions (``rope_theta``).
"""

from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.mixers.base import BiasedConfig, Context, LayerInfo, Mixer, copy_projections
from effarch.mixers.softmax_attention import Attention
from effarch.nn.linear import Linear
from effarch.nn.norm import LayerNorm
from effarch.nn.qkv import QKV
from effarch.nn.rotary import rotate
from effarch.ops.channels import over_tokens
from effarch.ops.precision import accumulator
from effarch.ops.recurrence import Scalar, linear_recurrence
from effarch.ops.recurrence.flops import recurrence_flops
from effarch.ops.stabiliser import stabilise
from effarch.registry import register
from effarch.typing import Array


@register("mlstm", kind="mixer")
class MLSTM(BiasedConfig):
    """A matrix memory with a forget gate and an exponential input gate per head."""

    recurrent: ClassVar[bool] = True
    context_parallel: ClassVar[bool] = True
    transition: ClassVar[str] = "scalar"
    paper: ClassVar[str] = "2405.04517 xLSTM: Extended Long Short-Term Memory"

    num_heads: int = pydantic.Field(8, gt=0, description="heads")
    head_dim: int = pydantic.Field(256, gt=0, description="width of a query or key head")
    value_head_dim: int = pydantic.Field(512, gt=0, description="width of a value head")
    rope_theta: float | None = pydantic.Field(None, gt=0, description="base of rotary wavelengths; null: no rotation")
    gate_cap: float = pydantic.Field(15.0, gt=0, description="gate logits are cap * tanh(logit / cap)")
    eps: float = pydantic.Field(1e-6, gt=0, description="added to the stabilised denominator")
    norm_eps: float = pydantic.Field(1e-6, gt=0, description="of the norm per head")

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> "MLSTMMixer":
        return MLSTMMixer(self, dim, rngs=rngs)

    def flops(self, dim: int, time: int) -> int:
        projections = 2 * dim * self.num_heads * (2 * self.head_dim + 3 * self.value_head_dim + 2)
        return time * projections + recurrence_flops(
            "decay",
            time,
            heads=self.num_heads,
            key_heads=self.num_heads,
            key_dim=self.head_dim,
            value_dim=self.value_head_dim + 1,
        )

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        return cls(num_heads=4, head_dim=8, value_head_dim=8, rope_theta=1e4), 32


class MLSTMMixer(Mixer):
    """The module; see the file. Its state: C and n [B, H, K, V + 1] divided by e^m, and m [B, H], float32."""

    def __init__(self, config: MLSTM, dim: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        heads, key_dim, value_dim = config.num_heads, config.head_dim, config.value_head_dim
        per_head = ("heads", "head_dim")
        self.qkv = QKV(
            dim, heads=heads, kv_heads=heads, key_dim=key_dim, value_dim=value_dim, **config.biases, rngs=rngs
        )
        self.f = Linear(dim, heads, axes=("embed", "heads"), scale=0.0, rngs=rngs)
        self.i = Linear(dim, heads, axes=("embed", "heads"), scale=0.0, rngs=rngs)
        self.f_bias = nnx.Param(jnp.linspace(3.0, 6.0, heads, dtype=jnp.float32), axes=("heads",))
        self.i_bias = nnx.Param(jnp.full((heads,), -10.0, jnp.float32), axes=("heads",))
        self.gate = Linear(dim, (heads, value_dim), axes=("embed", *per_head), rngs=rngs)
        self.norm = LayerNorm(value_dim, heads=heads, bias=False, eps=config.norm_eps, axes=per_head)

    def init_state(self, batch_size: int, max_length: int) -> tuple[Array, Array]:
        c = self.config
        s = jnp.zeros((batch_size, c.num_heads, c.head_dim, c.value_head_dim + 1), jnp.float32)
        return s, jnp.zeros((batch_size, c.num_heads), jnp.float32)

    def _gate(self, x: Array, linear: Linear, bias: nnx.Param) -> Array:
        z = linear(x).astype(accumulator(x))
        return self.config.gate_cap * jnp.tanh((z + over_tokens(bias[...], z)) / self.config.gate_cap)

    def mixing_matrix(self, x: Array, ctx: Context, *, weights: bool = False) -> Array:
        """Refused: the denominator stands beside the recurrence."""
        raise self.no_matrix("a mixing matrix of its recurrence alone")

    def __call__(self, x: Array, state: tuple | None, ctx: Context) -> tuple[Array, tuple | None, Context]:
        c = self.config
        s, m = (None, None) if state is None else state
        q, k, v = self.qkv(x)
        if c.rope_theta is not None:
            q, k = rotate(q, ctx.positions, c.rope_theta), rotate(k, ctx.positions, c.rope_theta)
        log_f, log_i = jax.nn.log_sigmoid(self._gate(x, self.f, self.f_bias)), self._gate(x, self.i, self.i_bias)
        gates = stabilise(log_f, log_i, state=m, segment_ids=ctx.segments)
        o, s = linear_recurrence(
            q * jnp.asarray(c.head_dim**-0.5, q.dtype),
            k * jnp.exp(gates.log_input).astype(k.dtype)[..., None],
            jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1),
            transition=Scalar(gates.log_decay),
            state=s,
            segment_ids=ctx.segments,
            form=ctx.form,
        )
        o, total = o[..., :-1], o[..., -1:].astype(log_i.dtype)
        scale = jax.lax.stop_gradient(gates.maximum)[..., None]
        # eps is the one term that depends on m: eps, times e^m over what the state was divided by.
        eps = c.eps * jnp.exp(gates.maximum[..., None] - scale)
        h = o / (jnp.maximum(jnp.abs(total), jnp.exp(-scale)) + eps).astype(o.dtype)
        y = self.qkv.o(self.norm(h) * jax.nn.sigmoid(self.gate(x)))
        return y, None if state is None else (s, gates.state), ctx

    def from_attention(self, attention: Attention) -> Self:
        """q, k, v and o of the teacher, its key heads repeated; gates and the norm are new. Returns self."""
        copy_projections(attention, q=self.qkv.q, k=self.qkv.k, v=self.qkv.v, o=self.qkv.o)
        return self
