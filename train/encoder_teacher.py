"""The teacher of an encoder's distillation where there is one: a run of ours, or a folder of the Hugging Face hub."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar, cast

from effarch.config import UserError
from effarch.experiment.teacher import HUB, is_checkpoint, is_finished
from effarch.hub import load_encoder, read_encoder_config
from effarch.hub.locate import locate
from effarch.models.encoder import Encoder, EncoderConfig

C = TypeVar("C", bound=EncoderConfig)
M = TypeVar("M", bound=Encoder)


@dataclasses.dataclass(frozen=True)
class Kind(Generic[C, M]):
    """What a teacher must be.

    Attributes:
      config: its class. of_run: reads one from a run's folder. wanted, lacks: of a message: "a classifier", "head ...".
    """

    config: type[C]
    of_run: Callable[[str], M]
    wanted: str
    lacks: str

    def config_at(self, path: str) -> C:
        """The config of the teacher there. Raises ``UserError`` where there is none, or another kind of model."""
        folder = checkpoint_folder(path)
        found = self.of_run(path).config if folder is None else read_encoder_config(folder)
        if not isinstance(found, self.config):
            raise UserError(f"teacher.path: expected {self.wanted}, {path} has no {self.lacks}")
        return found

    def open(self, path: str) -> M:
        """The teacher itself; checkpoints are computed with in float32."""
        folder = checkpoint_folder(path)
        if folder is None:
            return self.of_run(path)
        return cast(M, load_encoder(folder, dtype="float32", param_dtype="float32"))


def checkpoint_folder(path: str) -> Path | None:
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
