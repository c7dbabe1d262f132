"""The teacher of a distillation: a checkpoint of the hub or a finished run as it is, or a run trained for it."""

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from effarch import hub
from effarch.config import UserError
from effarch.data.prepare import Prepared, prepare
from effarch.data.token_file import FILE, load_tokenizer
from effarch.data.tokenizer import Tokenizer
from effarch.hub.locate import locate
from effarch.models.lm import LM, LMConfig
from effarch.training.checkpoint import latest_step, read_metadata
from effarch.training.faults import StopSignal
from effarch.training.load import load_lm
from train.pretrain import PretrainConfig, fitted, pretrain

if TYPE_CHECKING:
    from train.distill import DistillConfig

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


def _given(config: "DistillConfig") -> Path | None:
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
    folder = _given(config)
    if folder is None:
        return fitted(config.teacher.model, config.data, "teacher.model")
    if is_checkpoint(folder):
        return hub.read_lm_config(folder).replace(dtype="float32", param_dtype="float32")
    return LMConfig.model_validate(read_metadata(folder)[1]["model"])


def teacher_tokenizer(config: "DistillConfig") -> Tokenizer | None:
    """What the teacher's folder says of it; None where it says nothing."""
    folder = _given(config)
    if folder is None or (is_checkpoint(folder) and not (folder / FILE).exists()):
        return None
    return load_tokenizer(folder)


def prepare_text(config: "DistillConfig", seq_len: int) -> Prepared:
    """The data, in the teacher's tokens.

    Raises:
      UserError: ``data.tokenizer`` has other tokens than the teacher, or more than the teacher has rows for.
    """
    theirs = teacher_tokenizer(config)
    chosen = theirs if config.data.tokenizer is None else None
    prepared = prepare(config.data, seq_len, config.cache_dir, tokenizer=chosen)
    if theirs is not None and (difference := theirs.difference(prepared.tokenizer)):
        raise UserError(f"data.tokenizer: expected the tokens of the teacher, {config.teacher.path}; {difference}")
    if (size := prepared.tokenizer.vocab_size) > (rows := teacher_config(config).vocab_size):
        raise UserError(f"data.tokenizer: expected at most the {rows} tokens of the teacher, got {size}")
    return prepared


def open_teacher(config: "DistillConfig", prepared: Prepared, stop: StopSignal) -> LM:
    """The teacher itself: of a folder as it is, or of a run of ours, trained as far as it is not."""
    folder = _given(config)
    if folder is not None:
        if not is_checkpoint(folder):
            return load_lm(folder)
        return hub.load_lm(folder, dtype="float32", param_dtype="float32")
    folder = Path(config.teacher.path or Path(config.output_dir) / "teacher")
    wanted: PretrainConfig = config.pretraining(
        folder, teacher_config(config), config.teacher.steps, config.teacher.optimizer
    )
    return pretrain(wanted, stop=stop, prepared=prepared, name="teacher")
