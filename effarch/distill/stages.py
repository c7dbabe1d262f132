"""The stages of a distillation, as data: what each minimises, on what, for how long, and what it trains."""

from typing import Annotated, Literal, Self

import optax
import pydantic
from flax import nnx

import effarch.training.lora  # noqa: F401  (registers)
from effarch.config import Config
from effarch.distill import layerwise, objectives
from effarch.distill.cache import CacheConfig
from effarch.distill.hidden import HiddenLoss
from effarch.distill.losses import LogitLoss
from effarch.distill.matrices import MatrixLoss
from effarch.distill.on_policy import on_policy
from effarch.models.generate import Sampling
from effarch.models.lm import LM
from effarch.registry import Choice, register
from effarch.training.optimizer import OptimizerConfig, Schedule, make_optimizer
from effarch.training.step import LossFn, Scheduled
from effarch.training.trainable import All, Mixers, Named, TrainsChoice


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

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn | Scheduled:
        """The loss of a step, of the student's states."""
        raise NotImplementedError(f"{type(self).__name__} has no objective")

    def transformation(self) -> tuple[optax.GradientTransformation, Schedule]:
        """The optimizer of what is trained, and its learning rate."""
        return make_optimizer(self.optimizer, self.steps)

    def check(self, teacher: LM, student: LM) -> None:
        """Raises ``ValueError`` where these models cannot take part; they may be abstract."""

    def ending_with(self, token: int | None) -> Self:
        """This stage for texts that end with a token; None: with none."""
        return self


class LayerStage(Stage):
    """Base of the stages that compare layer by layer, all on the teacher's input."""

    trains: TrainsChoice = pydantic.Field(Mixers(), description="what of the layers moves")

    @pydantic.field_validator("trains")
    @classmethod
    def _has_a_gradient(cls, trains: Config) -> Config:
        if isinstance(trains, All):  # the rest would have no gradient, and decay
            raise ValueError(f"trains: expected what {cls.type_name} reaches, mixers, lora or named, got all")
        return trains


@register("align", kind="stage")
class Align(LayerStage):
    """Hidden alignment: every layer on the teacher's input, all layers in one pass; mixers and their norms, or LoRA."""

    target: layerwise.Target = pydantic.Field(
        "mixer_out", description='whose output: "mixer_out" (LoLCATs, RADLADS) or "block_out" (MOHAWK)'
    )
    loss: HiddenLoss = HiddenLoss()

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        return layerwise.align(teacher, student, self.loss, self.target)


@register("orient", kind="stage")
class Orient(LayerStage):
    """Orientation of mixing matrices (MOHAWK, 2408.10189): those of every layer and head against attention weights."""

    loss: MatrixLoss = MatrixLoss()

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        return layerwise.matrices(teacher, student, self.loss)

    def check(self, teacher: LM, student: LM) -> None:
        layerwise.check_matrices(teacher, student, self.loss)


@register("attention_maps", kind="stage")
class AttentionMaps(Orient):
    """Attention weights (Hedgehog, 2402.04347): of feature-map students, against the teacher's; feature maps alone."""

    trains: TrainsChoice = pydantic.Field(Named(names=("phi_q", "phi_k")), description="what of the layers moves")
    loss: MatrixLoss = MatrixLoss(kind="cross_entropy")


@register("swap", kind="stage")
class Swap(Stage):
    """Progressive swapping: layers pass from teacher to student one after the other, at equal intervals."""

    order: Literal["up", "down"] = pydantic.Field("up", description='"up" begins with the lowest layer')
    loss: LogitLoss = LogitLoss()

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> Scheduled:
        return layerwise.swap(teacher, student, self.loss, self.steps, self.order)


@register("logits", kind="stage")
class Logits(Stage):
    """Distributions over the next token."""

    loss: LogitLoss = LogitLoss()
    vocab_chunk: int | None = pydantic.Field(
        None,
        gt=0,
        description="entries of the vocabulary whose logits exist at a time; null: 8192 where it has above 65536, "
        "else all",
    )
    cache: CacheConfig | None = pydantic.Field(
        None, description="keep the teacher's likeliest next tokens on disk; null: the teacher runs in every step"
    )

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        if self.cache is not None:
            return objectives.cached_logits(student, self.loss, vocab_chunk=self.vocab_chunk)
        return objectives.logits(teacher, student, self.loss, vocab_chunk=self.vocab_chunk)

    def check(self, teacher: LM, student: LM) -> None:
        if self.cache is not None and self.cache.top_k > (size := teacher.config.vocab_size):
            raise ValueError(f"cache.top_k: expected at most the vocabulary of {size}, got {self.cache.top_k}")


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

    @pydantic.field_validator("cache")
    @classmethod
    def _asks_the_teacher(cls, cache: CacheConfig | None) -> None:
        if cache is not None:
            raise ValueError("cache: expected null, for no cache knows what the student will write")

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        options = {name: getattr(self, name) for name in ("fraction", "prompt", "sampling", "end_token")}
        return on_policy(student, super().objective(teacher, student), **options)

    def ending_with(self, token: int | None) -> Self:
        return self if self.end_token is not None else self.replace(end_token=token)


def cached(stage: Stage) -> bool:
    """Whether a stage reads a cache, and so needs no teacher."""
    return isinstance(stage, Logits) and stage.cache is not None


StageChoice = Annotated[Stage, Choice("stage")]
