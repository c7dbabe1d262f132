"""Tokens hidden from a masked language model (BERT, 1810.04805, 3.1), drawn anew in every step, on the device.

Every token but special ones and padding is chosen with probability ``fraction``, and is then what the model must find.
Of the chosen, the share ``hidden`` is shown as the mask token, the share ``random`` as a token drawn uniformly from the
vocabulary, and the rest as it is.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import pydantic

from effarch.config import Config
from effarch.data.tokenizer import Tokenizer
from effarch.typing import Array


class MaskingConfig(Config):
    """How tokens are hidden; the defaults are BERT's."""

    fraction: float = pydantic.Field(0.15, gt=0, lt=1, description="of the tokens that are chosen, to be found")
    hidden: float = pydantic.Field(0.8, ge=0, le=1, description="of the chosen, shown as the mask token")
    random: float = pydantic.Field(0.1, ge=0, le=1, description="of the chosen, shown as any token")
    token: int | None = pydantic.Field(
        None, ge=0, description="id of the mask token; null: the tokenizer's, else the first id that it does not use"
    )

    @pydantic.model_validator(mode="after")
    def _shares(self) -> Self:
        if self.hidden + self.random > 1:
            raise ValueError(f"random: expected at most {1 - self.hidden:g}, what hidden leaves, got {self.random}")
        return self


@dataclasses.dataclass(frozen=True)
class Masking:
    """:class:`MaskingConfig` for the ids of a tokenizer.

    Attributes:
      config: the shares. token: id of the mask token. special: ids that are never chosen. vocab_size: the tokenizer's.
    """

    config: MaskingConfig
    token: int
    special: tuple[int, ...]
    vocab_size: int

    @classmethod
    def of(cls, config: MaskingConfig, tokenizer: Tokenizer) -> Self:
        """For the ids of a tokenizer."""
        unused = tokenizer.vocab_size if tokenizer.mask_id is None else tokenizer.mask_id
        token = unused if config.token is None else config.token
        marks = (token, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        return cls(config, token, tuple(sorted({i for i in marks if i is not None})), tokenizer.vocab_size)

    @property
    def rows(self) -> int:
        """Rows that a model's embedding needs."""
        return max(self.vocab_size, self.token + 1)

    def __call__(self, batch: Mapping[str, Any], key: Array) -> dict[str, Array]:
        """An encoder's batch of one of text rows; traceable.

        Args:
          batch: ``tokens`` and ``segment_ids`` ``[B, T]``. key: of the draw.

        Returns:
          ``inputs`` as the model sees them; ``mask``, the documents' numbers; ``targets``, which are the tokens;
          ``chosen``, 1.0 where a token is to be found.
        """
        tokens, documents = batch["tokens"], batch["segment_ids"]
        which, how, what = jax.random.split(key, 3)
        ordinary = ~jnp.isin(tokens, jnp.asarray(self.special, tokens.dtype)) & (documents > 0)
        chosen = ordinary & jax.random.bernoulli(which, self.config.fraction, tokens.shape)
        share = jax.random.uniform(how, tokens.shape)
        other = jax.random.randint(what, tokens.shape, 0, self.vocab_size, tokens.dtype)
        hidden = self.config.hidden
        shown = jnp.where(share < hidden, self.token, jnp.where(share < hidden + self.config.random, other, tokens))
        return {
            "inputs": jnp.where(chosen, shown, tokens).astype(tokens.dtype),
            "mask": documents,
            "targets": tokens,
            "chosen": chosen.astype(jnp.float32),
        }
