"""A stack of layers whose pattern repeats: scanned in training, so that compile time does not grow with depth.

prefix          layers that differ from those that follow (RWKV-7's first layer), unrolled
period x n      the pattern, its parameters stacked over n repetitions and consumed by one ``jax.lax.scan``
suffix          the remainder, unrolled
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from effarch.mixers.base import LayerInfo
from effarch.models.block import Block, BlockConfig
from effarch.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Layout:
    """How ``prefix + period * repeats + suffix`` layers are held."""

    prefix: int
    period: int
    repeats: int
    suffix: int

    @property
    def count(self) -> int:
        """Number of layers."""
        return self.prefix + self.period * self.repeats + self.suffix

    @classmethod
    def of(cls, kinds: Sequence[Any]) -> "Layout":
        """The layout that scans most layers with the shortest period; ``kinds[i]`` says what layer i is made of.

        Layers can be stacked where their kinds are equal. Nothing that occurs once only is scanned.
        """
        count = len(kinds)
        best = cls(count, 1, 0, 0)
        for period in range(1, count // 2 + 1):
            for prefix in range(0, count - 2 * period + 1):
                repeats = 1
                first = list(kinds[prefix : prefix + period])
                while list(kinds[prefix + repeats * period : prefix + (repeats + 1) * period]) == first:
                    repeats += 1
                if repeats < 2:
                    continue
                found = cls(prefix, period, repeats, count - prefix - period * repeats)
                if found.unrolled < best.unrolled:
                    best = found
        return best

    @property
    def unrolled(self) -> int:
        """Blocks in the compiled program."""
        return self.prefix + (self.period if self.repeats else 0) + self.suffix

    @classmethod
    def joint(cls, layouts: Sequence["Layout"]) -> "Layout":
        """One layout for stacks of the same depth: the longest prefix, the least common multiple of the periods."""
        count = layouts[0].count
        if any(layout.count != count for layout in layouts):
            raise ValueError(f"layers: expected stacks of one depth, got {[layout.count for layout in layouts]}")
        scanned = [layout for layout in layouts if layout.repeats]
        if len(scanned) < len(layouts):
            return cls(count, 1, 0, 0)
        prefix = max(layout.prefix for layout in scanned)
        period = math.lcm(*(layout.period for layout in scanned))
        end = min(layout.count - layout.suffix for layout in scanned)
        repeats = max(end - prefix, 0) // period
        return cls(prefix, period, repeats, count - prefix - period * repeats) if repeats else cls(count, 1, 0, 0)


class Stack(nnx.Module):
    """Layers held as a :class:`Layout` says. Use :meth:`of` or :meth:`make`."""

    def __init__(self, layout: Layout, prefix: list[Block], period: list[Block], suffix: list[Block]) -> None:
        self.layout = layout
        self.prefix = nnx.List(prefix)
        self.period = nnx.List(period)
        self.suffix = nnx.List(suffix)

    @classmethod
    def make(cls, layout: Layout, make: Callable[[int, Any], Block]) -> "Stack":
        """Initialises layers with ``make(static index, index)``; repetitions together, their index traced."""
        prefix = [make(i, i) for i in range(layout.prefix)]
        period = []
        for j in range(layout.period if layout.repeats else 0):
            first = layout.prefix + j
            indices = jnp.arange(first, first + layout.period * layout.repeats, layout.period)
            period.append(jax.vmap(partial(make, first))(indices))
        start = layout.count - layout.suffix
        return cls(layout, prefix, period, [make(i, i) for i in range(start, layout.count)])

    @classmethod
    def of(cls, layout: Layout, layers: Sequence[Block]) -> "Stack":
        """Holds given layers as ``layout`` says; copies where they are stacked."""
        end = layout.prefix + layout.period * layout.repeats
        period = []
        for j in range(layout.period if layout.repeats else 0):
            same = layers[layout.prefix + j : end : layout.period]
            period.append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *same))
        return cls(layout, list(layers[: layout.prefix]), period, list(layers[end:]))

    def layers(self) -> list[Block]:
        """All layers one by one; what is stacked is sliced."""
        scanned = []
        for i in range(self.layout.repeats):
            scanned += [jax.tree.map(lambda x, i=i: x[i], block) for block in self.period]
        return [*self.prefix, *scanned, *self.suffix]

    def relaid(self, layout: Layout) -> "Stack":
        """The same layers held otherwise; itself if nothing changes."""
        return self if layout == self.layout else Stack.of(layout, self.layers())


def make_stack(
    blocks: Sequence[BlockConfig],
    make: Callable[[BlockConfig, LayerInfo, nnx.Rngs], Block],
    *,
    key: Array,
    dtype: Any,
    scan: bool = True,
) -> Stack:
    """Freshly initialised layers, laid out so that most are scanned.

    Initialisation of a layer depends on its index and ``key``, not on how layers are held.

    Args:
      blocks: the config of each layer. make: a layer from its config, its place and its random numbers.
      key: of the random numbers. dtype: of activations. scan: false holds every layer apart.
    """
    count = len(blocks)
    firsts = {block.mixer.shares: i for i, block in reversed(list(enumerate(blocks)))}

    def layer(place: int, index: Any) -> Block:
        block = blocks[place]
        info = LayerInfo(index, count, place == firsts[block.mixer.shares], jnp.dtype(dtype))
        return make(block, info, nnx.Rngs(jax.random.fold_in(key, index)))

    # Only the first layer of those that share values may differ from the others of its config: two looks tell.
    places = [(block, firsts[block.mixer.shares] == i) for i, block in enumerate(blocks)]
    looks = {place: (place[0], structure(partial(layer, *[places.index(place)] * 2))) for place in set(places)}
    kinds = [looks[place] for place in places]
    return Stack.make(Layout.of(kinds) if scan else Layout(count, 1, 0, 0), layer)


Body = Callable[[PyTree, tuple[Block, ...]], tuple[PyTree, PyTree]]


def scan_layers(body: Body, carry: PyTree, stacks: Sequence[Stack], *, remat: str = "none") -> tuple[PyTree, PyTree]:
    """Runs ``body(carry, (layer of each stack)) -> (carry, y)`` over stacks of the same depth, together.

    The structure of the carry may change in the unrolled prefix only (values that cross layers begin there). Stacks
    whose layouts differ are laid out anew, which copies their parameters.

    Args:
      body: one layer. carry: what goes from layer to layer. stacks: of one depth.
      remat: "none", "full" (recompute each layer in the backward pass) or "dots" (keep matrix products).

    Returns:
      The last carry, and ``y`` of all layers stacked on a new first axis.
    """
    layout = Layout.joint([stack.layout for stack in stacks])
    stacks = [stack.relaid(layout) for stack in stacks]
    policies = {"none": None, "full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
    if remat not in policies:
        raise ValueError(f"remat: expected one of {', '.join(policies)}, got {remat!r}")
    if remat != "none":
        body = _recomputed(body, policies[remat])

    parts: list[PyTree] = []

    def unrolled(carry: PyTree, name: str) -> PyTree:
        for layers in zip(*(getattr(stack, name) for stack in stacks), strict=True):
            carry, y = body(carry, layers)
            parts.append(jax.tree.map(lambda x: x[None], y))
        return carry

    carry = unrolled(carry, "prefix")
    if layout.repeats:

        def step(carry: PyTree, blocks: tuple[tuple[Block, ...], ...]) -> tuple[PyTree, PyTree]:
            ys = []
            for layers in zip(*blocks, strict=True):
                carry, y = body(carry, layers)
                ys.append(y)
            return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)

        carry, ys = jax.lax.scan(step, carry, tuple(tuple(stack.period) for stack in stacks))
        parts.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), ys))  # [repeats, period, ...] in order
    carry = unrolled(carry, "suffix")
    return carry, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _recomputed(body: Body, policy: Callable[..., bool] | None) -> Body:
    """The body, recomputed in the backward pass. What it hands on as it got it goes around the recomputation.

    ``scan`` then sees that it is one value for all layers, and keeps it once; else every layer would keep its own copy.
    """

    def recomputed(carry: PyTree, layers: tuple[Block, ...]) -> tuple[PyTree, PyTree]:
        origins: list[PyTree] = []  # told while tracing: of what comes out, which leaf of the carry it is, or None

        def inner(carry: PyTree, layers: tuple[Block, ...]) -> tuple[PyTree, PyTree]:
            out, y = body(carry, layers)
            places = {id(x): i for i, x in enumerate(jax.tree.leaves(carry))}
            origins.append(jax.tree.map(lambda x: places.get(id(x)), out))
            return jax.tree.map(lambda x: None if id(x) in places else x, out), y

        made, y = jax.checkpoint(inner, prevent_cse=False, policy=policy)(carry, layers)
        given = jax.tree.leaves(carry)

        def joined(place: int | None, x: Array | None) -> Array | None:
            return x if place is None else given[place]

        return jax.tree.map(joined, origins[-1], made, is_leaf=lambda x: x is None), y

    return recomputed


def structure(make: Callable[[], Block]) -> tuple[Any, tuple[tuple[int, ...], ...]]:
    """What a layer is made of, without making it: equal for layers that can be stacked."""
    graph, abstract = nnx.split(jax.eval_shape(make))
    leaves: list[Array] = jax.tree.leaves(abstract)
    return graph, tuple(leaf.shape for leaf in leaves)
