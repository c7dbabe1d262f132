"""The teacher of a distillation of a classifier: trained, read from a run, or from the Hugging Face hub."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from effarch.config import UserError
from effarch.data.images import ImageSets
from effarch.experiment.teacher import HUB, is_checkpoint, is_finished
from effarch.hub import load_encoder, read_encoder_config
from effarch.hub.locate import locate
from effarch.models.classifier import Classifier, ClassifierConfig
from effarch.training.faults import StopSignal
from effarch.training.load import load_classifier
from train.classify import classify

if TYPE_CHECKING:
    from train.distill_classifier import DistillClassifierConfig


def _checkpoint(path: str) -> Path | None:
    """The folder of a teacher in the layout of the Hugging Face hub; None: it is a run of ours.

    Raises:
      UserError: it is neither.
    """
    if path.startswith(HUB):
        return locate(path.removeprefix(HUB))
    if is_checkpoint(Path(path)):
        return Path(path)
    if not is_finished(Path(path)):
        raise UserError(f"teacher.path: expected the folder of a finished run or of the Hugging Face hub, got {path}")
    return None


def teacher_config(config: "DistillClassifierConfig") -> ClassifierConfig:
    """The teacher's. Raises ``UserError`` where it is no classifier."""
    path = config.teacher.path
    if path is None:
        return config.teacher.model
    folder = _checkpoint(path)
    found = load_classifier(path).config if folder is None else read_encoder_config(folder)
    if not isinstance(found, ClassifierConfig):
        raise UserError(f"teacher.path: expected a classifier, {path} has no head over classes")
    return found


def open_teacher(config: "DistillClassifierConfig", sets: ImageSets, stop: StopSignal) -> Classifier:
    """Trains it, or reads it."""
    given, path = config.teacher, config.teacher.path
    if path is None:
        return classify(config.alone("teacher", given.model, given.steps, given.optimizer), sets, stop)
    folder = _checkpoint(path)
    return load_classifier(path) if folder is None else cast(Classifier, load_encoder(folder))
