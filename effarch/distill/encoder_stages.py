"""The stages of an encoder's distillation: layer by layer, then the distributions over classes."""

from typing import Annotated

import pydantic
from flax import nnx

from effarch.distill import objectives
from effarch.distill.losses import LogitLoss
from effarch.distill.stages import Align, Stage
from effarch.registry import Choice, register
from effarch.training.step import LossFn


class EncoderStage(Stage):
    """Base of the stages, chosen by ``type``: on whole rows, whose length is the encoder's."""

    @pydantic.field_validator("seq_len")
    @classmethod
    def _whole_rows(cls, seq_len: int | None) -> None:
        if seq_len is not None:
            raise ValueError(f"seq_len: expected null, for rows of an encoder are whole, got {seq_len}")


@register("align", kind="encoder_stage")
class AlignEncoder(Align, EncoderStage):
    """Hidden alignment, as of language models: every layer on the teacher's input, all layers in one pass."""


@register("logits", kind="encoder_stage")
class ClassLogits(EncoderStage):
    """Distributions over classes, softened by a temperature (1503.02531), mixed with the labels' cross-entropy."""

    loss: LogitLoss = LogitLoss()

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        return objectives.class_logits(teacher, student, self.loss)


@register("cross_entropy", kind="encoder_stage")
class Labels(EncoderStage):
    """The labels, without the teacher: plain fine-tuning."""

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        of_labels = objectives.classification(student)
        return lambda params, rest, batch, rng, *frozen: of_labels(params, rest, batch, rng)


EncoderStageChoice = Annotated[Stage, Choice("encoder_stage")]
