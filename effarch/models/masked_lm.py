"""The masked language model (BERT, 1810.04805): an encoder of token ids, and a head over the vocabulary.

The head is ``logits_t = E norm(act(W x_t + b)) + c``, E the embedding's table.
"""

from functools import partial
from typing import Literal, Self, cast

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.models.block import make_norm
from effarch.models.encoder import Encoder, EncoderConfig
from effarch.models.inputs import Ids
from effarch.models.lm import with_params_in
from effarch.nn.head import Head
from effarch.nn.linear import Linear
from effarch.typing import Array, Bool, Float, Int

_ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class MaskedLMConfig(EncoderConfig):
    """A masked language model."""

    activation: Literal["gelu", "gelu_tanh", "relu"] = pydantic.Field("gelu", description="of the head's layer")

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return cast(Ids, self.input).vocab_size

    @pydantic.model_validator(mode="after")
    def _of_ids(self) -> Self:
        if not isinstance(self.input, Ids):
            raise ValueError(f"input: expected ids in a masked language model, got {self.input.type_name}")
        return self


class MaskedLM(Encoder):
    """A masked language model."""

    config: MaskedLMConfig

    def __init__(self, config: MaskedLMConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        self.activation = config.activation
        self.transform = Linear(config.dim, config.dim, axes=("embed", None), bias=True, rngs=rngs)
        self.transform_norm = make_norm(config.norm, config.dim, config.norm_eps)
        rows = self.embedding.table.shape[0]
        self.unembed_bias = nnx.Param(jnp.zeros((rows,), jnp.float32), axes=("vocab",))

    def transformed(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """What :attr:`head` reads."""
        return self.transform_norm(_ACTIVATIONS[self.activation](self.transform(hidden)))

    @property
    def head(self) -> Head:
        """What makes logits of :meth:`transformed` hidden states, as that of a decoder."""
        return Head(self.embedding.table[...], self.unembed_bias[...], rows=True)

    def __call__(
        self,
        inputs: Int[Array, "B T"],
        *,
        mask: Bool[Array, "B T"] | Int[Array, "B T"] | None = None,
        token_types: Int[Array, "B T"] | None = None,
        form: str = "chunkwise",
    ) -> Float[Array, "B T vocab"]:
        """Logits of every token; arguments as for :meth:`hidden`."""
        hidden = self.hidden(inputs, mask=mask, token_types=token_types, form=form).hidden
        return self.head(self.transformed(hidden))


def make_masked_lm(config: MaskedLMConfig, seed: int = 0) -> MaskedLM:
    """A freshly initialised masked language model, its parameters in ``param_dtype``."""
    return with_params_in(MaskedLM(config, rngs=nnx.Rngs(seed)), config.param_dtype)
