"""LoRA (2106.09685): low-rank adapters on projections, on the tree of parameters.

    W' = W + (alpha / rank) A B        A [*in, rank] ~ N(0, 1 / in), B [rank, *out] = 0

W, a kernel ``[*in, *out]``, stays as it is; A and B are what is trained, the only thing with moments. W' is formed
where the loss begins, so that no module knows of adapters, and what comes out is an ordinary model with W' in place of
W, in W's dtype. That costs one gradient of W's size per kernel for as long as a backward pass lasts, and nothing in
the forward pass, where adapters beside the product would cost two products more per projection.

LoLCATs (2410.10254) trains its second stage so: rank 8, alpha 16, on q, k, v and o.
"""

import math

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.config import UserError
from effarch.nn.linear import Linear
from effarch.ops.precision import accumulator, dot
from effarch.registry import register
from effarch.training.trainable import Trains
from effarch.typing import Array, PyTree

#: What mixers have instead of attention's projections: RWKV's r, Mamba-2's c, b and x, HGRN's i.
_STANDS_FOR = {"q": ("r", "c"), "k": ("b",), "v": ("x", "i")}


@register("lora", kind="trains")
class LoRA(Trains):
    """Low-rank adapters on projections, merged into them when they have been trained."""

    rank: int = pydantic.Field(8, gt=0, description="columns of A")
    alpha: float = pydantic.Field(16.0, gt=0, description="A B is multiplied by alpha / rank")
    mixer: tuple[str, ...] = pydantic.Field(
        ("q", "k", "v", "o"), description="projections of the sequence mixers, or what they have instead of these"
    )
    channel: tuple[str, ...] = pydantic.Field((), description="projections of the channel mixers: up, gate, down")

    @pydantic.model_validator(mode="after")
    def _on_something(self) -> "LoRA":
        if not self.mixer and not self.channel:
            raise ValueError("mixer, channel: expected at least one projection to adapt")
        return self

    def split(self, model: nnx.Module, seed: int = 0) -> tuple[nnx.GraphDef, PyTree, PyTree]:
        graph, rest = nnx.split(model)
        key, adapters = jax.random.key(seed), {}
        for number, (path, linear) in enumerate(self._projections(model)):
            adapters |= {(*path, name): x for name, x in self._pair(linear, jax.random.fold_in(key, number)).items()}
        return graph, nnx.from_flat_state(adapters), rest

    def whole(self, params: PyTree, rest: PyTree) -> tuple[PyTree, PyTree]:
        return _merge(params, rest, self.alpha / self.rank)

    def _projections(self, model: nnx.Module) -> list[tuple[tuple, Linear]]:
        linears = {path: module for path, module in nnx.iter_graph(model) if isinstance(module, Linear)}
        found: dict[tuple, Linear] = {}
        for part, names in (("mixer", self.mixer), ("channel", self.channel)):
            inside = {path: linear for path, linear in linears.items() if part in path}
            taken = {name: _called(name, inside, instead=part == "mixer") for name in names}
            if missing := [name for name, linears_ in taken.items() if not linears_]:
                known = ", ".join(sorted({str(path[-1]) for path in inside}))
                raise UserError(f"trains.{part}: expected projections of the model ({known}), got {missing[0]!r}")
            for linears_ in taken.values():
                found |= linears_
        return sorted(found.items(), key=lambda item: [str(part) for part in item[0]])

    def _pair(self, linear: Linear, key: Array) -> dict[str, nnx.Param]:
        kernel, contracted = linear.kernel, linear.contracted
        names = kernel.get_metadata("axes")
        stacked = kernel.shape[: kernel.ndim - len(names)]  # of scanned layers
        inputs, outputs = kernel.shape[len(stacked) :][:contracted], kernel.shape[len(stacked) :][contracted:]
        a = jax.random.normal(key, (*stacked, *inputs, self.rank), jnp.float32) / math.sqrt(math.prod(inputs))
        b = jnp.zeros((*stacked, self.rank, *outputs), jnp.float32)
        return {
            "a": nnx.Param(a, axes=(*names[:contracted], "rank")),
            "b": nnx.Param(b, axes=("rank", *names[contracted:])),
        }


def _called(name: str, linears: dict[tuple, Linear], *, instead: bool) -> dict[tuple, Linear]:
    """The projections of that name; in a module that has none, what stands for it there."""
    found = {}
    for parent in dict.fromkeys(path[:-1] for path in linears):
        options = (name, *(_STANDS_FOR.get(name, ()) if instead else ()))
        here = [(*parent, option) for option in options if (*parent, option) in linears]
        found |= {path: linears[path] for path in here[:1]}
    return found


def adapted(kernel: Array, a: Array, b: Array, scale: float) -> Array:
    """``kernel + scale * a b``, in the kernel's dtype.

    Args:
      kernel: ``[..., *in, *out]``; leading dims are those of stacked layers. a: ``[..., *in, rank]``.
      b: ``[..., rank, *out]``. scale: alpha / rank.
    """
    inputs = kernel.ndim - b.ndim + 1
    stacked = a.ndim - 1 - inputs
    lead, rank = kernel.shape[:stacked], a.shape[-1]
    product = dot(a.reshape(*lead, -1, rank), b.reshape(*lead, rank, -1)).reshape(kernel.shape)
    dtype = accumulator(kernel)
    return (kernel.astype(dtype) + scale * product.astype(dtype)).astype(kernel.dtype)


@jax.jit
def _merge(params: PyTree, rest: PyTree, scale: float) -> tuple[PyTree, PyTree]:
    adapters, base = dict(nnx.to_flat_state(params)), dict(nnx.to_flat_state(rest))
    kernels: dict[tuple, nnx.Param] = {}
    for path, a in adapters.items():
        if path[-1] == "a":
            at = (*path[:-1], "kernel")
            kernel, b = base.pop(at), adapters[(*path[:-1], "b")]
            kernels[at] = kernel.replace(adapted(kernel[...], a[...], b[...], scale))
    return nnx.from_flat_state(kernels), nnx.from_flat_state(base)
