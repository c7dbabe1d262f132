"""A trained model back from its run's folder."""

from pathlib import Path

import jax
from flax import nnx

from effarch.config import UserError
from effarch.models.lm import LM, LMConfig, make_lm
from effarch.training.checkpoint import read_metadata, restore_params


def load_lm(folder: str | Path, step: int | None = None) -> LM:
    """The language model of a run, from its newest checkpoint or the given one.

    Raises:
      UserError: no such run, no checkpoint, or one that is damaged or of another version.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: expected the folder of a run, found none")
    step, metadata = read_metadata(folder, step)
    if not isinstance(metadata.get("model"), dict):
        raise UserError(f"{folder}: expected a checkpoint of a language model, its metadata names none")
    config = LMConfig.model_validate(metadata["model"])
    graph, params, rest = nnx.split(jax.eval_shape(lambda: make_lm(config)), nnx.Param, ...)
    params, rest = restore_params(folder, params, rest, step)
    return nnx.merge(graph, params, rest)
