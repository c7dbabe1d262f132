"""What is minimised of masked language models: the hidden tokens, and a teacher's distributions over them.

Makers as in ``objectives``, for the batches of :class:`effarch.data.masking.Masking`; :func:`hiding` makes those.
"""

from typing import Any

import jax
from flax import nnx

from effarch.data.masking import Masking
from effarch.distill.chunked import chunked_cross_entropy, chunked_logit_loss
from effarch.distill.losses import LogitLoss
from effarch.distill.objectives import CHUNK
from effarch.models.masked_lm import MaskedLM
from effarch.training.step import LossFn
from effarch.typing import Array, PyTree


def hiding(masking: Masking, loss_fn: LossFn) -> LossFn:
    """A loss of masked batches as one of text rows, whose tokens are hidden anew in every step."""

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array, *frozen: PyTree) -> tuple:
        draw, rng = jax.random.split(rng)
        return loss_fn(params, rest, masking(batch, draw), rng, *frozen)

    return loss


def transformed(model: MaskedLM, batch: dict[str, Array]) -> Array:
    """What the head reads of a masked batch, ``[B, T, D]``."""
    return model.transformed(model.hidden(batch["inputs"], mask=batch["mask"]).hidden)


def hidden_tokens(graph: nnx.GraphDef, chunk: int = CHUNK) -> LossFn:
    """Cross-entropy of the hidden tokens, nats; a teacher that is handed over is not asked."""

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array, *frozen: PyTree) -> tuple:
        model: MaskedLM = nnx.merge(graph, params, rest)
        found = transformed(model, batch)
        return tuple(chunked_cross_entropy(found, model.head, batch["targets"], batch["chosen"], chunk))

    return loss


def hidden_logits(
    teacher_graph: nnx.GraphDef, graph: nnx.GraphDef, config: LogitLoss, chunk: int = CHUNK, **options: Any
) -> LossFn:
    """A divergence between teacher and student, both given the same rows, where tokens are hidden (1910.01108).

    Args:
      teacher_graph, graph: of the models. config: which divergence. chunk: positions whose logits exist at a time.
      options: ``vocab_chunk`` of :func:`effarch.distill.chunked.chunked_logit_loss`.
    """

    def loss(params: PyTree, rest: PyTree, batch: dict[str, Array], rng: Array, frozen: PyTree) -> tuple:
        teacher: MaskedLM = nnx.merge(teacher_graph, frozen)
        student: MaskedLM = nnx.merge(graph, params, rest)
        theirs, mine = jax.lax.stop_gradient(transformed(teacher, batch)), transformed(student, batch)
        what = student.head, teacher.head, batch["targets"], batch["chosen"], config
        return tuple(chunked_logit_loss(mine, theirs, *what, chunk, **options))

    return loss
