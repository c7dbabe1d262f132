"""Which teacher a distillation has: a checkpoint of the hub, a finished run, or one that is yet to be trained."""

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from effarch import hub
from effarch.config import UserError
from effarch.experiment.config import fitted
from effarch.hub.locate import locate
from effarch.models.lm import LMConfig
from effarch.training.checkpoint import latest_step, read_metadata

if TYPE_CHECKING:
    from effarch.experiment.distill import DistillConfig

HUB = "hf:"  # before a name of the hub; a name alone could be a folder that is yet to be made


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is in the layout of the Hugging Face hub."""
    return (folder / "config.json").is_file() and not (folder / "config.yaml").exists()


def is_finished(folder: Path) -> bool:
    """Whether a folder is that of a run that has taken all its steps."""
    if not (folder / "config.yaml").is_file() or latest_step(folder) is None:
        return False
    step, metadata = read_metadata(folder)
    return step >= yaml.safe_load(metadata["config"]).get("steps", 0)


def teacher_folder(config: "DistillConfig") -> Path | None:
    """The folder of a teacher that is there; None: it is trained, as far as it is not, by this distillation.

    Raises:
      UserError: ``teacher.path`` is a folder of something else.
    """
    if config.teacher.path is None:
        return None
    if config.teacher.path.startswith(HUB):
        return locate(config.teacher.path.removeprefix(HUB))
    folder = Path(config.teacher.path)
    if is_checkpoint(folder) or is_finished(folder):
        return folder
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.yaml").exists():
        raise UserError(
            f"teacher.path: expected the folder of a run (config.yaml) or of the Hugging Face hub (config.json), found"
            f" neither in {folder}"
        )
    return None


def teacher_config(config: "DistillConfig") -> LMConfig:
    """What the teacher is; nothing is loaded.

    Raises:
      UserError: no such teacher.
    """
    folder = teacher_folder(config)
    if folder is None:
        return fitted(config.teacher.model, config.data, "teacher.model")
    if is_checkpoint(folder):
        return hub.read_lm_config(folder).replace(dtype="float32", param_dtype="float32")
    return LMConfig.model_validate(read_metadata(folder)[1]["model"])
