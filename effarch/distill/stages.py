"""The stages of a distillation, as data: what each minimises, for how long, and what it may change."""

from typing import Annotated

import jax
import optax
import pydantic
from flax import nnx

from effarch.config import Config
from effarch.distill import objectives
from effarch.distill.hidden import HiddenLoss
from effarch.distill.losses import LogitLoss
from effarch.registry import Choice, register
from effarch.training.optimizer import OptimizerConfig, Schedule, make_optimizer
from effarch.training.step import LossFn
from effarch.typing import PyTree


class Stage(Config):
    """Base of the stages, chosen by ``type``."""

    steps: int = pydantic.Field(100, gt=0, description="updates")
    optimizer: OptimizerConfig = OptimizerConfig()

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        """The loss of a step."""
        raise NotImplementedError(f"{type(self).__name__} has no objective")

    def transformation(self) -> tuple[optax.GradientTransformation, Schedule]:
        """The optimizer, and its learning rate."""
        return make_optimizer(self.optimizer, self.steps)


@register("align", kind="stage")
class Align(Stage):
    """Hidden alignment: every layer on the teacher's input, all layers in one pass; changes mixers and their norms."""

    loss: HiddenLoss = HiddenLoss()

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        return objectives.align(teacher, student, self.loss)

    def transformation(self) -> tuple[optax.GradientTransformation, Schedule]:
        # Weight decay moves what has no gradient, too: what is not a mixer's is left alone.
        tx, schedule = super().transformation()
        return optax.chain(tx, optax.masked(optax.set_to_zero(), _not_of_mixers)), schedule


@register("logits", kind="stage")
class Logits(Stage):
    """Distributions over the next token; changes everything."""

    loss: LogitLoss = LogitLoss()

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        return objectives.logits(teacher, student, self.loss)


StageChoice = Annotated[Stage, Choice("stage")]


def _not_of_mixers(params: PyTree) -> PyTree:
    def frozen(path: tuple, _: object) -> bool:
        names = {str(getattr(key, "key", getattr(key, "name", ""))) for key in path}
        return not names & {"mixer", "mixer_norm"}

    return jax.tree.map_with_path(frozen, params)
