"""The stages of a distillation, as data: what each minimises, on what, for how long, and what it trains."""

from typing import Annotated, Self

import optax
import pydantic
from flax import nnx

import effarch.training.lora  # noqa: F401  (registers)
from effarch.config import Config
from effarch.distill import objectives
from effarch.distill.hidden import HiddenLoss
from effarch.distill.losses import LogitLoss
from effarch.distill.on_policy import on_policy
from effarch.models.generate import Sampling
from effarch.registry import Choice, register
from effarch.training.optimizer import OptimizerConfig, Schedule, make_optimizer
from effarch.training.step import LossFn
from effarch.training.trainable import All, Mixers, TrainsChoice


class Stage(Config):
    """Base of the stages, chosen by ``type``."""

    trains: TrainsChoice = pydantic.Field(All(), description="what of the student moves")
    steps: int = pydantic.Field(100, gt=0, description="updates, where the run has no tokens to share out")
    share: float | None = pydantic.Field(
        None, gt=0, le=1, description="of the run's tokens; null: as large as those of the others without one"
    )
    batch_size: int | None = pydantic.Field(None, gt=0, description="rows per update; null: the run's")
    seq_len: int | None = pydantic.Field(None, gt=1, description="tokens per row; null: the run's")
    optimizer: OptimizerConfig = OptimizerConfig()

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        """The loss of a step, of the student's states."""
        raise NotImplementedError(f"{type(self).__name__} has no objective")

    def transformation(self) -> tuple[optax.GradientTransformation, Schedule]:
        """The optimizer of what is trained, and its learning rate."""
        return make_optimizer(self.optimizer, self.steps)

    def ending_with(self, token: int | None) -> Self:
        """This stage for texts that end with a token; None: with none."""
        return self


@register("align", kind="stage")
class Align(Stage):
    """Hidden alignment: every layer on the teacher's input, all layers in one pass; mixers and their norms, or LoRA."""

    trains: TrainsChoice = pydantic.Field(Mixers(), description="what of the mixers moves")
    loss: HiddenLoss = HiddenLoss()

    @pydantic.field_validator("trains")
    @classmethod
    def _has_a_gradient(cls, trains: Config) -> Config:
        if isinstance(trains, All):  # the rest would have no gradient, and decay
            raise ValueError("trains: expected what alignment reaches, mixers, lora or named, got all")
        return trains

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        return objectives.align(teacher, student, self.loss)


@register("logits", kind="stage")
class Logits(Stage):
    """Distributions over the next token."""

    loss: LogitLoss = LogitLoss()

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        return objectives.logits(teacher, student, self.loss)


@register("cross_entropy", kind="stage")
class CrossEntropy(Stage):
    """The text's next tokens, without the teacher: plain fine-tuning."""

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        return objectives.next_token(student)


@register("on_policy", kind="stage")
class OnPolicy(Logits):
    """Distributions over the next token of what the student itself writes (GKD)."""

    fraction: float = pydantic.Field(0.5, ge=0, le=1, description="of the batches that the student writes; lambda")
    prompt: float = pydantic.Field(0.5, gt=0, lt=1, description="of a row that it is given, the first part")
    sampling: Sampling = pydantic.Field(Sampling(), description="how it draws tokens")
    end_token: int | None = pydantic.Field(None, ge=0, description="id that ends a text; null: the tokenizer's")

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        options = {name: getattr(self, name) for name in ("fraction", "prompt", "sampling", "end_token")}
        return on_policy(student, super().objective(teacher, student), **options)

    def ending_with(self, token: int | None) -> Self:
        return self if self.end_token is not None else self.replace(end_token=token)


StageChoice = Annotated[Stage, Choice("stage")]
