"""The protocol of every mixer, and the base of every mixer's config."""

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.config import Config
from effarch.mixers.context import Context, Progress
from effarch.nn.linear import Linear
from effarch.ops import mixing
from effarch.registry import Choice
from effarch.typing import Array, Float, PyTree

__all__ = ["ChannelChoice", "Context", "LayerInfo", "Mixer", "MixerChoice", "MixerConfig", "Progress"]


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """Where in the model a mixer stands; initialisation depends on it in some architectures.

    Attributes:
      index: of the layer, from 0; a traced integer where layers are initialised together.
      count: number of layers.
      first: whether this is the first layer of those that share values (static; it may have other parameters).
      dtype: of activations, and so of what a cache stores.
    """

    index: int | Array = 0
    count: int = 1
    first: bool = True
    dtype: Any = jnp.float32

    @property
    def depth(self) -> float | Array:
        """0 at the first layer, 1 at the last."""
        return self.index / max(self.count - 1, 1)


class Mixer(nnx.Module):
    """``[B, T, D] -> [B, T, D]``. One signature for attention, recurrences, sparse attention, and channel mixers."""

    def init_state(self, batch_size: int, max_length: int) -> PyTree:
        """What is carried between calls before any token: an immutable pytree, () where there is none.

        Args:
          batch_size: rows. max_length: tokens that a document may reach (the size of a KV cache).
        """
        return ()

    def __call__(
        self, x: Float[Array, "B T D"], state: PyTree | None, ctx: Context
    ) -> tuple[Float[Array, "B T D"], PyTree | None, Context]:
        """Outputs, the next state, and the context for the next layer. State None in, None out (training)."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")

    def mixing_matrix(
        self, x: Float[Array, "B T D"], ctx: Context, *, weights: bool = False
    ) -> Float[Array, "B H T T"]:
        """M of every head, ``o_t = sum_s M_ts v_s``: what stands between values and outputs, before norms and gates.

        Read off the one operation that the mixer calls (``effarch.ops.mixing``); a mixer that adds terms of its own to
        it says so by a method of its own. O(T^2) memory.

        Args:
          x, ctx: as for a call, without a state. weights: refuse rows that are not weights, >= 0 and of sum 1.

        Raises:
          ValueError: the mixer has no such matrix.
        """
        with mixing.watch() as found:
            self(x, None, ctx)
        batch, time, _ = x.shape
        if len(found) != 1 or (batch, time, time) != (*found[0].matrix.shape[:1], *found[0].matrix.shape[2:]):
            raise self.no_matrix("a mixing matrix")
        if weights and not found[0].weights:
            raise self.no_matrix("attention weights (a mixing matrix whose rows sum to 1)")
        return found[0].matrix

    def no_matrix(self, wanted: str) -> ValueError:
        """What to raise where there is none."""
        return ValueError(f"mixer: expected one with {wanted}, got {type(self).__name__}")


class MixerConfig(Config):
    """Base of mixer configs: frozen, registered by name, one per architecture.

    Flags (what one rules out shows up as a named skip in the tests):
      causal: no output depends on a later token. recurrent: state does not grow with the context.
      fixed_length: T is fixed by the parameters, as the field ``length`` says. context_parallel: a sequence may be
        split over devices. packed: takes rows of several documents and padding; else it refuses ``segment_ids``.
      forms: the forms it has. transition: the class of its recurrence in words, "" if none.
      paper: arXiv id or DOI, and the title.
    """

    causal: ClassVar[bool] = True
    recurrent: ClassVar[bool] = False
    fixed_length: ClassVar[bool] = False
    context_parallel: ClassVar[bool] = False
    packed: ClassVar[bool] = True
    stands_in_for_attention: ClassVar[bool] = True  # has from_attention
    forms: ClassVar[tuple[str, ...]] = ("parallel", "chunkwise", "recurrent")
    transition: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    @property
    def shares(self) -> str:
        """Names the layers of a model that pass values on among themselves, the first of which differs: its type's."""
        return self.type_name or type(self).__qualname__

    def make(self, dim: int, *, layer: LayerInfo, rngs: nnx.Rngs) -> Mixer:
        """The module for a model of width ``dim``. Raises ``ValueError`` where the width does not fit."""
        raise NotImplementedError(f"{type(self).__name__} has no make")

    def flops(self, dim: int, time: int) -> int:
        """Floating-point operations of the forward pass over one row of ``time`` tokens (a multiply-add is two)."""
        raise NotImplementedError(f"{type(self).__name__} has no flops")

    def state_bytes(self, dim: int, time: int, dtype: Any = jnp.float32) -> int:
        """Bytes carried per row when decoding with ``time`` tokens of context, read off the state itself."""

        def state() -> PyTree:
            return self.make(dim, layer=LayerInfo(dtype=dtype), rngs=nnx.Rngs(0)).init_state(1, time)

        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(state)))

    @classmethod
    def tiny(cls) -> tuple[Self, int]:
        """The smallest instance that exercises everything, and the model width for it: for the tests."""
        raise NotImplementedError(f"{cls.__name__} has no tiny")

    def matching(self, attention: "MixerConfig") -> Self:
        """This config with the head layout, rotary base and biases of an attention config, where its own are defaults.

        So that weights can be copied: as many heads as the teacher's queries, its head size for keys and values; a
        mixer without heads (``channels``) has those of all heads side by side. A value that differs from the default
        was chosen, and stays.
        """
        sizes = {
            "num_heads": getattr(attention, "num_heads", None),
            "num_kv_heads": getattr(attention, "num_kv_heads", None),
            "head_dim": getattr(attention, "head_dim", None),
            "value_head_dim": getattr(attention, "head_dim", None),
            "rope_theta": getattr(attention, "rope_theta", None),
            "qkv_bias": getattr(attention, "qkv_bias", None),
            "out_bias": getattr(attention, "out_bias", None),
        }
        if sizes["num_heads"] and sizes["head_dim"]:
            sizes["channels"] = sizes["num_heads"] * sizes["head_dim"]
        fields = type(self).model_fields
        taken = {
            name: size
            for name, size in sizes.items()
            if name in fields and size is not None and getattr(self, name) == fields[name].default
        }
        return self.replace(**taken)


class BiasedConfig(MixerConfig):
    """Base of the configs of mixers whose projections can take over a teacher's biases."""

    qkv_bias: bool = pydantic.Field(False, description="biases on q, k and v")
    out_bias: bool = pydantic.Field(False, description="bias on the output projection")

    @property
    def biases(self) -> dict[str, bool]:
        """As :class:`effarch.nn.qkv.QKV` takes them."""
        return {"bias": self.qkv_bias, "out_bias": self.out_bias}


MixerChoice = Annotated[MixerConfig, Choice("mixer")]
ChannelChoice = Annotated[MixerConfig, Choice("channel")]


def whole_rows_only(name: str, ctx: Context) -> None:
    """Raises ``ValueError`` where a mixer that is not ``packed`` is given documents or padding."""
    if ctx.segments is not None:
        raise ValueError(f"segment_ids: {name} mixes whole rows and takes neither packed documents nor padding")


def rows_of_length(name: str, length: int, x: Float[Array, "B T D"], ctx: Context) -> None:
    """Raises ``ValueError`` where a ``fixed_length`` mixer is given other rows than its parameters are for."""
    whole_rows_only(name, ctx)
    if x.shape[1] != length:
        raise ValueError(f"length: expected rows of {length} tokens, as {name} is made for, got {x.shape[1]}")


def expand_heads(kernel: Float[Array, "... H K"], heads: int) -> Float[Array, "... H K"]:
    """The heads of a projection (its last axis but one) repeated to ``heads``, as grouped queries share them.

    Raises:
      ValueError: ``heads`` is not a multiple of those given.
    """
    given = kernel.shape[-2]
    if heads % given:
        raise ValueError(f"num_heads: expected a multiple of the teacher's {given} heads, got {heads}")
    return jnp.repeat(kernel, heads // given, axis=-2)


def copy_kernel(target: nnx.Param, kernel: Array, what: str) -> None:
    """Puts a teacher's kernel in place of ``target``'s. Raises ``ValueError`` on another shape."""
    if target.shape != kernel.shape:
        raise ValueError(f"{what}: expected the teacher's shape {list(target.shape)}, got {list(kernel.shape)}")
    target[...] = kernel.astype(target.dtype)


def copy_projections(attention: Any, *, scale: float = 1.0, **mine: Linear) -> None:
    """Copies kernels of softmax attention into projections, its heads repeated to theirs, and biases if both have them.

    Args:
      attention: a softmax attention mixer. scale: multiplies what is copied into ``q`` (K^-1/2 where q is not scaled),
        beside the teacher's own ``query_factor``.
      mine: by the teacher's names: ``q``, ``k``, ``v`` and ``o``. ``q``, ``k`` and ``v`` are ``[D, H, K]``,
        ``[D, n, H, K]`` (n times the same) or ``[D, H K]``; ``o`` is ``[H, V, D]`` or ``[H V, D]``, never repeated.

    Raises:
      ValueError: a shape does not fit.
    """
    scale = scale * attention.config.query_factor
    for name, linear in mine.items():
        theirs, shape = getattr(attention.qkv, name), linear.kernel.shape
        kernel, bias = theirs.kernel[...], None if theirs.bias is None else theirs.bias[...]
        if name != "o":
            heads = shape[-1] // kernel.shape[-1] if len(shape) == 2 else shape[-2]
            kernel, bias = expand_heads(kernel, heads), None if bias is None else expand_heads(bias, heads)
        if len(shape) == 2:
            kernel = kernel.reshape(-1, shape[-1]) if name == "o" else kernel.reshape(len(kernel), -1)
        elif len(shape) == 4:
            kernel = jnp.repeat(kernel[:, None], shape[1], axis=1)
        factor = scale if name == "q" else 1.0
        copy_kernel(linear.kernel, kernel * factor, name)
        if linear.bias is not None and bias is not None:  # once for each write of a token
            copy_kernel(linear.bias, jnp.broadcast_to(bias, linear.bias.shape) * factor, f"{name}: bias")
