"""The stages of a masked language model's distillation: layer by layer, then the distributions over hidden tokens."""

from typing import Annotated

import pydantic
from flax import nnx

from effarch.distill import masked
from effarch.distill.encoder_stages import AlignEncoder, EncoderStage
from effarch.distill.losses import LogitLoss
from effarch.distill.stages import Stage
from effarch.registry import Choice, register
from effarch.training.step import LossFn


@register("align", kind="masked_stage")
class AlignMasked(AlignEncoder):
    """Hidden alignment on rows with hidden tokens: every layer on the teacher's input, all layers in one pass."""


@register("logits", kind="masked_stage")
class MaskedLogits(EncoderStage):
    """Distributions over hidden tokens (DistilBERT, 1910.01108), mixed with the tokens' cross-entropy."""

    loss: LogitLoss = LogitLoss()
    vocab_chunk: int | None = pydantic.Field(
        None, gt=0, description="entries of the vocabulary whose logits exist at a time; null: by its size"
    )

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        return masked.hidden_logits(teacher, student, self.loss, vocab_chunk=self.vocab_chunk)


@register("cross_entropy", kind="masked_stage")
class HiddenTokens(EncoderStage):
    """The hidden tokens, without the teacher: plain fine-tuning."""

    def objective(self, teacher: nnx.GraphDef, student: nnx.GraphDef) -> LossFn:
        return masked.hidden_tokens(student)


MaskedStageChoice = Annotated[Stage, Choice("masked_stage")]
