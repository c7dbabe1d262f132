"""Which layers should keep the teacher's attention: those whose restoring brings the student closest to it.

In a fully converted student the attention of one layer is put back (the teacher's mixer and the norm before it; all
else stays the student's), and KL(teacher || student) is measured on held-out rows. The layers with the largest drop are
kept: the choice by KL of 2512.20569, without its training of every candidate. ``greedy`` adds one layer at a time to
those chosen before, so that two layers that do the same are not both taken.

Values that cross layers (RWKV-7's first value) go on being made by the student's own mixers.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effarch.data.targets import shift
from effarch.distill.chunked import token_kl
from effarch.distill.losses import bits
from effarch.mixers.base import Context
from effarch.models.block import Block
from effarch.models.lm import LM
from effarch.typing import Array, Bool, Float, PyTree

Batch = Mapping[str, Array | np.ndarray]
Method = Literal["single", "greedy"]


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was measured, in bits per token, and chosen.

    Attributes:
      kept: the layers chosen, in the order of choice.
      converted: KL of the student as it is.
      restored: by layer, KL with the teacher's attention in this layer alone.
      after: KL after each choice, with the attention of all layers chosen so far.
    """

    kept: tuple[int, ...]
    converted: float
    restored: tuple[float, ...]
    after: tuple[float, ...]


def restored_hidden(
    teacher: LM,
    student: LM,
    tokens: Array,
    segment_ids: Array,
    restored: Bool[Array, "L"],
) -> Float[Array, "B T D"]:
    """Hidden states of the student with the teacher's attention where ``restored`` is true, which may be traced."""
    ctx, _ = Context.of(*tokens.shape, segment_ids=segment_ids)

    def body(carry: tuple, layers: tuple[Block, ...]) -> tuple[tuple, None]:
        index, x, theirs, mine = carry
        own, _, after, _ = layers[0](x, None, dataclasses.replace(ctx, shared=mine))
        hybrid = nnx.merge(*nnx.split(layers[0]))
        for name in ("mixer", "mixer_norm", "mixer_post_norm"):
            setattr(hybrid, name, getattr(layers[1], name))
        other, _, beside, _ = hybrid(x, None, dataclasses.replace(ctx, shared=theirs))
        x = jnp.where(restored[index], other.astype(own.dtype), own)
        return (index + 1, x, dict(beside.shared), dict(after.shared)), None

    start = (jnp.zeros((), jnp.int32), student.embed(tokens, ctx.positions), {}, {})
    (_, x, _, _), _ = student.scan_layers(body, start, teacher)
    return student.normed(x)


@partial(jax.jit, static_argnums=0)
def _teacher_hidden(graph: nnx.GraphDef, params: PyTree, batch: dict[str, Array]) -> Array:
    lm: LM = nnx.merge(graph, params)
    return lm.hidden(batch["tokens"], segment_ids=batch["segment_ids"]).hidden


@partial(jax.jit, static_argnums=(0, 1))
def _kl(
    teacher_graph: nnx.GraphDef,
    graph: nnx.GraphDef,
    frozen: PyTree,
    params: PyTree,
    batch: dict[str, Array],
    theirs: Array,
    restored: Array,
) -> tuple[Array, Array]:
    teacher: LM = nnx.merge(teacher_graph, frozen)
    student: LM = nnx.merge(graph, params)
    inputs, _, mask = shift(batch)
    mine = restored_hidden(teacher, student, inputs, batch["segment_ids"], restored)
    return token_kl(mine, theirs, student.head, teacher.head, mask).sum(), mask.sum()


def select_layers(
    teacher: LM,
    student: LM,
    batches: Sequence[Batch],
    keep: int,
    method: Method = "single",
    advance: Callable[[int], None] = lambda done: None,
) -> Selection:
    """The ``keep`` layers to give their attention back to.

    Args:
      teacher, student: of the same depth and width; every layer of the student is converted.
      batches: rows of text to measure on, all of one shape.
      keep: how many layers, 1 to all.
      method: "single" ranks layers by the drop of each alone (1 + L measurements); "greedy" measures anew after each
        choice (about keep x L).
      advance: told how many measurements of :func:`measurements` are done.

    Raises:
      ValueError: keep out of range, or a layer that is not converted.
    """
    layers = student.config.num_layers
    if not 1 <= keep <= layers:
        raise ValueError(f"keep: expected 1 to {layers} layers, got {keep}")
    for i in range(layers):
        if type(student.config.block(i).mixer) is type(teacher.config.block(i).mixer):
            raise ValueError(f"student: expected every layer to be converted, layer {i} has the teacher's mixer")
    teacher_graph, frozen = nnx.split(teacher)
    graph, params = nnx.split(student)
    rows = [({k: jnp.asarray(b[k]) for k in ("tokens", "segment_ids", "loss_mask")}) for b in batches]
    theirs = [_teacher_hidden(teacher_graph, frozen, batch) for batch in rows]
    done = 0

    def measure(chosen: Sequence[int]) -> float:
        nonlocal done
        flags = jnp.asarray(np.isin(np.arange(layers), list(chosen)))
        parts = [_kl(teacher_graph, graph, frozen, params, b, t, flags) for b, t in zip(rows, theirs, strict=True)]
        nats, tokens = (sum(float(part[i]) for part in parts) for i in (0, 1))
        advance(done := done + 1)
        return bits(nats / max(tokens, 1.0))

    converted = measure(())
    alone = tuple(measure((i,)) for i in range(layers))
    kept: list[int] = [int(np.argmin(alone))] if method == "greedy" else [int(i) for i in np.argsort(alone)[:keep]]
    after = [alone[kept[0]]]
    while len(after) < keep:
        if method == "greedy":
            left = [i for i in range(layers) if i not in kept]
            found = [measure((*kept, i)) for i in left]
            kept.append(left[int(np.argmin(found))])
            after.append(min(found))
        else:
            after.append(measure(kept[: len(after) + 1]))
    return Selection(tuple(kept), converted, alone, tuple(after))


def measurements(layers: int, keep: int, method: Method) -> int:
    """How often :func:`select_layers` measures."""
    return 1 + layers + (sum(layers - n for n in range(1, keep)) if method == "greedy" else keep - 1)
