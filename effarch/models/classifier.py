"""The classifier of images and texts: an encoder, and a head over classes."""

import pydantic
from flax import nnx

from effarch.models.encoder import Encoder, EncoderConfig
from effarch.models.lm import with_params_in
from effarch.nn.linear import Linear
from effarch.typing import Array, Bool, Float, Int


class ClassifierConfig(EncoderConfig):
    """A classifier."""

    classes: int = pydantic.Field(10, gt=1, description="classes")


class Classifier(Encoder):
    """A classifier; the head starts at zero, so that every class is as likely at first."""

    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.head = Linear(config.dim, config.classes, axes=("embed", "vocab"), bias=True, scale=0.0, rngs=rngs)

    def __call__(
        self,
        inputs: Array,
        *,
        mask: Bool[Array, "B T"] | None = None,
        token_types: Int[Array, "B T"] | None = None,
        form: str = "chunkwise",
    ) -> Float[Array, "B classes"]:
        """Logits; arguments as for :meth:`hidden`."""
        hidden = self.hidden(inputs, mask=mask, token_types=token_types, form=form).hidden
        return self.head(self.pool(hidden, mask))


def make_classifier(config: ClassifierConfig, seed: int = 0) -> Classifier:
    """A freshly initialised classifier, its parameters in ``param_dtype``."""
    return with_params_in(Classifier(config, rngs=nnx.Rngs(seed)), config.param_dtype)
