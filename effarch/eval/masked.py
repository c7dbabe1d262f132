"""How good a masked language model is: hidden tokens found, and distance from its teacher."""

import dataclasses
from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from effarch.data.masking import Masking
from effarch.distill.chunked import token_kl, token_scores
from effarch.distill.losses import bits
from effarch.distill.masked import transformed
from effarch.eval.scores import Batch
from effarch.models.masked_lm import MaskedLM
from effarch.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class MaskedScores:
    """On hidden tokens of validation text.

    Attributes:
      bits_per_token: cross-entropy of a hidden token. accuracy: share of them that are the likeliest, 0 to 1.
      kl_bits: KL(teacher || model) in bits per hidden token; None without a teacher.
      agreement: share of them whose likeliest token is the teacher's too, 0 to 1; None without a teacher.
    """

    bits_per_token: float
    accuracy: float
    kl_bits: float | None
    agreement: float | None


@partial(jax.jit, static_argnums=(0, 1, 3))
def _sums(
    graph: nnx.GraphDef, masking: Masking, state: PyTree, teacher_graph, teacher_state: PyTree, batch: Batch, key: Array
) -> dict[str, Array]:
    model: MaskedLM = nnx.merge(graph, state)
    rows = masking(batch, key)
    mask, mine = rows["chosen"], transformed(model, rows)
    scores = token_scores(mine, model.head, rows["targets"], mask)
    if teacher_graph is not None:
        teacher: MaskedLM = nnx.merge(teacher_graph, teacher_state)
        theirs = transformed(teacher, rows)
        best = token_scores(theirs, teacher.head, rows["targets"], mask)["best"]
        scores["kl"] = token_kl(mine, theirs, model.head, teacher.head, mask)
        scores["agree"] = (scores["best"] == best).astype(mask.dtype) * mask
    del scores["best"]
    return {name: x.sum() for name, x in (scores | {"count": mask}).items()}


def masked_scores(
    model: MaskedLM, batches: Iterable[Batch], masking: Masking, *, teacher: MaskedLM | None = None, seed: int = 0
) -> MaskedScores:
    """:class:`MaskedScores` over batches of text rows; the same tokens are hidden whatever the model.

    Args:
      model: the model. batches: ``tokens``, ``segment_ids``. masking: what is hidden. teacher: of the model.
      seed: of the draw.

    Raises:
      ValueError: no hidden token.
    """
    graph, state = nnx.split(model)
    teacher_graph, teacher_state = (None, None) if teacher is None else nnx.split(teacher)
    key, total = jax.random.key(seed), dict.fromkeys(("nll", "correct", "kl", "agree", "count"), 0.0)
    for index, batch in enumerate(batches):
        rows = {name: jnp.asarray(batch[name]) for name in ("tokens", "segment_ids")}
        found = _sums(graph, masking, state, teacher_graph, teacher_state, rows, jax.random.fold_in(key, index))
        for name, x in found.items():
            total[name] += float(np.asarray(x))
    if not total["count"]:
        raise ValueError("batches: expected tokens to hide, got none")
    mean = {name: x / total["count"] for name, x in total.items()}
    if teacher is None:
        return MaskedScores(bits(mean["nll"]), mean["correct"], None, None)
    return MaskedScores(bits(mean["nll"]), mean["correct"], bits(mean["kl"]), mean["agree"])
