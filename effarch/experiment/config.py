"""The configs of runs, and of pretraining."""

from pathlib import Path
from typing import Any, Self, TypeVar

import pydantic

from effarch.config import Config, UserError
from effarch.data.bytes import Bytes
from effarch.data.prepare import DataConfig
from effarch.eval.config import EvalConfig
from effarch.models.lm import LMConfig
from effarch.parallel.mesh import MeshConfig
from effarch.parallel.processes import ProcessesConfig
from effarch.training.checkpoint import CheckpointConfig
from effarch.training.metrics import LogConfig
from effarch.training.optimizer import OptimizerConfig
from effarch.training.profile import ProfileConfig

C = TypeVar("C", bound="LoopConfig")


class LoopConfig(Config):
    """What every run has."""

    run_name: str = pydantic.Field("run", description="folder of the run below output_dir")
    output_dir: str = pydantic.Field("runs", description="folder of all runs")
    seed: int = pydantic.Field(0, ge=0, lt=2**32, description="of initialisation and data order")
    batch_size: int = pydantic.Field(8, gt=0, description="rows per update, over all devices")
    grad_accum: int = pydantic.Field(1, gt=0, description="parts that a batch is processed in, one after the other")
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    profile: ProfileConfig = ProfileConfig()

    def beside(self, schema: type[C], folder: Path, **fields: Any) -> C:
        """A run that belongs to this one, in ``folder``, continued if it is there.

        It has the keys that both schemas have, batches and seed among them, and ``fields``.
        """
        shared = {name: getattr(self, name) for name in schema.model_fields if name in type(self).model_fields}
        shared |= {"output_dir": str(folder.parent), "run_name": folder.name}
        return schema(**shared | {"checkpoint": self.checkpoint.replace(resume=True)} | fields)


class TextConfig(LoopConfig):
    """What every run on text has."""

    cache_dir: str = pydantic.Field("runs/data", description="folder of prepared data")
    seq_len: int = pydantic.Field(512, gt=1, description="tokens per row")
    processes: ProcessesConfig = ProcessesConfig()
    data: DataConfig = DataConfig()


class RunConfig(TextConfig):
    """What every run of a language model has."""

    eval: EvalConfig = EvalConfig()


class PretrainConfig(RunConfig):
    """A pretraining run."""

    steps: int = pydantic.Field(1000, gt=0, description="updates")
    model: LMConfig = LMConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def fitted(self) -> Self:
        """This run with a model that has rows for the tokenizer."""
        return self.replace(model=fitted(self.model, self.data, "model"))


def fitted(model: LMConfig, data: DataConfig, key: str) -> LMConfig:
    """The model with rows for the data's tokenizer: as many where it has the default number of rows.

    Raises:
      UserError: its rows are too few, ``key`` in front.
    """
    rows = (data.tokenizer or Bytes()).rows()
    if model.vocab_size >= rows:
        return model
    if model.vocab_size != LMConfig.model_fields["vocab_size"].default:
        raise UserError(f"{key}.vocab_size: expected at least the {rows} of data.tokenizer, got {model.vocab_size}")
    return model.replace(vocab_size=rows)
