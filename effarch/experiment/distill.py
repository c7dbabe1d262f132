"""The config of a distillation, and its two models."""

from pathlib import Path
from typing import Annotated

import pydantic

from effarch.config import Config
from effarch.distill.plan import Planned, plan
from effarch.distill.stages import Align, Logits, StageChoice
from effarch.distill.transfer import StudentConfig, student_config, transfer
from effarch.experiment.config import PretrainConfig, RunConfig
from effarch.experiment.teacher import teacher_config
from effarch.models.lm import LM, DType, LMConfig, make_lm
from effarch.training.optimizer import OptimizerConfig


class TeacherConfig(Config):
    """The Transformer to distill."""

    path: str | None = pydantic.Field(
        None,
        description="folder of a checkpoint or of a finished run, or hf:OWNER/MODEL: taken as it is, whatever the keys "
        "below say; else trained there; null: <output_dir>/teacher",
    )
    steps: int = pydantic.Field(1000, gt=0, description="updates, if it is to be trained")
    model: LMConfig = LMConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    dtype: DType | None = pydantic.Field(
        None, description="of its parameters and activations in the stages; null: its own. Scores are against its own"
    )


class ScratchConfig(Config):
    """The same student without a teacher, on as much data: what distillation is compared with."""

    train: bool = pydantic.Field(True, description="whether to train it")
    optimizer: OptimizerConfig = OptimizerConfig()


class DistillConfig(RunConfig):
    """A distillation."""

    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    scratch: ScratchConfig = ScratchConfig()
    tokens: int | None = pydantic.Field(
        None, gt=0, description="to train on, all stages together, by their shares; null: as many as their steps take"
    )
    stages: Annotated[tuple[StageChoice, ...], pydantic.Field(min_length=1)] = (Align(), Logits())
    base_model: str | None = pydantic.Field(None, description="the teacher's name on the hub, for the model card")
    license: str | None = pydantic.Field(None, description="of the student, as the hub spells it; null: not said")
    sample_prompt: str = pydantic.Field("def ", description="what the sample continues")

    def plan(self) -> tuple[Planned, ...]:
        """The stages in their places."""
        return plan(self.stages, batch_size=self.batch_size, seq_len=self.seq_len, tokens=self.tokens)

    def pretraining(self, folder: Path, model: LMConfig, steps: int, optimizer: OptimizerConfig) -> PretrainConfig:
        """A pretraining run beside this one: same data, batches and seed; continued if it is there."""
        return self.beside(PretrainConfig, folder, model=model, steps=steps, optimizer=optimizer)


def student_lm_config(config: DistillConfig) -> LMConfig:
    """What the student is; nothing is loaded. Raises as :func:`converted`."""
    return student_config(teacher_config(config), config.student)


def converted(config: DistillConfig) -> tuple[LM, LM]:
    """A fresh teacher, and its student: what must be possible before anything is trained."""
    teacher = make_lm(teacher_config(config))
    student = transfer(teacher, make_lm(student_lm_config(config)))
    for stage in config.stages:
        stage.check(teacher, student)
    return teacher, student
