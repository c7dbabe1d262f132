"""A trained model back from its run's folder."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
from flax import nnx

import effarch.training.lora  # noqa: F401  (registers)
from effarch.config import Config, UserError
from effarch.models.classifier import Classifier, ClassifierConfig, make_classifier
from effarch.models.lm import LM, LMConfig, make_lm
from effarch.models.masked_lm import MaskedLM, MaskedLMConfig, make_masked_lm
from effarch.training.checkpoint import read_metadata, restore_params
from effarch.training.trainable import trains_of

C = TypeVar("C", bound=Config)
M = TypeVar("M", bound=nnx.Module)


def load_lm(folder: str | Path, step: int | None = None) -> LM:
    """The language model of a run, from its newest checkpoint or the given one.

    Raises:
      UserError: no such run, no checkpoint, or one that is damaged or of another version.
    """
    return _load(folder, step, "model", "language model", LMConfig, make_lm)


def load_classifier(folder: str | Path, step: int | None = None) -> Classifier:
    """The classifier of a run; as :func:`load_lm`."""
    return _load(folder, step, "classifier", "classifier", ClassifierConfig, make_classifier)


def load_masked_lm(folder: str | Path, step: int | None = None) -> MaskedLM:
    """The masked language model of a run; as :func:`load_lm`."""
    return _load(folder, step, "masked_lm", "masked language model", MaskedLMConfig, make_masked_lm)


#: What a checkpoint's metadata calls a model -> how it is read.
_READ: dict[str, Callable[..., LM | Classifier | MaskedLM]] = {
    "model": load_lm,
    "classifier": load_classifier,
    "masked_lm": load_masked_lm,
}


def load_model(folder: str | Path) -> LM | Classifier | MaskedLM:
    """The model of a run, whichever it is; errors as :func:`load_lm`."""
    metadata = read_metadata(folder, None)[1] if Path(folder).is_dir() else {}
    return next((read for key, read in _READ.items() if key in metadata), load_lm)(folder)


def _load(folder: str | Path, step: int | None, key: str, what: str, schema: type[C], make: Callable[[C], M]) -> M:
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: expected the folder of a run, found none")
    step, metadata = read_metadata(folder, step)
    if not isinstance(metadata.get(key), dict):
        raise UserError(f"{folder}: expected a checkpoint of a {what}, its metadata names none")
    config = schema.model_validate(metadata[key])
    trains = trains_of(metadata.get("trains"))
    graph, params, rest = jax.eval_shape(lambda: trains.split(make(config)))
    params, rest = restore_params(folder, params, rest, step)
    return trains.model(graph, params, rest)
