"""The teacher of a distillation: a checkpoint of the hub or a finished run as it is, or a run trained for it."""

from pathlib import Path

from effarch import hub
from effarch.config import UserError
from effarch.data.prepare import Prepared, prepare
from effarch.data.token_file import FILE, load_tokenizer
from effarch.experiment.config import PretrainConfig, TextConfig
from effarch.experiment.distill import DistillConfig
from effarch.experiment.teacher import is_checkpoint, teacher_config, teacher_folder
from effarch.models.lm import LM
from effarch.training.faults import StopSignal
from effarch.training.load import load_lm
from train.pretrain import pretrain


def prepare_for(config: TextConfig, seq_len: int, folder: Path | None, rows: int) -> Prepared:
    """The data of a run, in the tokens of its teacher.

    Args:
      config: the run. seq_len: tokens per row. folder: of the teacher, which may say what its tokens are; None: it is
        yet to be trained. rows: of the teacher's embedding.

    Raises:
      UserError: ``data.tokenizer`` has other tokens than the teacher, or more than the teacher has rows for.
    """
    theirs = None
    if folder is not None and ((folder / FILE).exists() or not is_checkpoint(folder)):
        theirs = load_tokenizer(folder)
    chosen = theirs if config.data.tokenizer is None else None
    prepared = prepare(config.data, seq_len, config.cache_dir, tokenizer=chosen)
    if theirs is not None and (difference := theirs.difference(prepared.tokenizer)):
        raise UserError(f"data.tokenizer: expected the tokens of the teacher, {folder}; {difference}")
    if (size := prepared.tokenizer.vocab_size) > rows:
        raise UserError(f"data.tokenizer: expected at most the {rows} tokens of the teacher, got {size}")
    return prepared


def prepare_text(config: DistillConfig, seq_len: int) -> Prepared:
    """The data of a distillation of language models; errors as :func:`prepare_for`."""
    return prepare_for(config, seq_len, teacher_folder(config), teacher_config(config).vocab_size)


def open_teacher(config: DistillConfig, prepared: Prepared, stop: StopSignal) -> LM:
    """The teacher itself: of a folder as it is, or of a run of ours, trained as far as it is not."""
    folder = teacher_folder(config)
    if folder is not None:
        if not is_checkpoint(folder):
            return load_lm(folder)
        return hub.load_lm(folder, dtype="float32", param_dtype="float32")
    folder = Path(config.teacher.path or Path(config.output_dir) / "teacher")
    wanted: PretrainConfig = config.pretraining(
        folder, teacher_config(config), config.teacher.steps, config.teacher.optimizer
    )
    return pretrain(wanted, stop=stop, prepared=prepared, name="teacher")
