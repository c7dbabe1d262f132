"""RWKV-4 (2305.13048) in transformers' format; ``rwkv`` has the authors' own. Read, not written: see there."""

from collections.abc import Mapping

from effarch.config import UserError
from effarch.hub.families import rwkv
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape
from effarch.mixers.rwkv_channel import RWKV4Channel
from effarch.models.lm import LMConfig

_SPELLING = rwkv.Spelling("embeddings.weight", "rwkv.", "attention", "feed_forward", "pre_ln", long_mixes=True)


def config(fields: Fields) -> LMConfig:
    """Ours for theirs."""
    fields.ignore("rescale_every", "context_length")  # halves what would leave the range of float16
    dim = fields.positive("hidden_size")
    eps = fields.take("layer_norm_epsilon", float, 1e-5)
    found = rwkv.lm_config(
        fields.positive("vocab_size"),
        dim,
        fields.positive("num_hidden_layers"),
        rwkv.rwkv4(fields.positive("attention_hidden_size", dim)),
        RWKV4Channel(hidden=fields.positive("intermediate_size", 4 * dim)),
    )
    if fields.take("tie_word_embeddings", bool, False):
        raise UserError(f"{fields.where}: tie_word_embeddings: expected false, got true, which is not supported")
    return found.replace(norm_eps=eps)


def rules(config: LMConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    return rwkv.model_rules(config, names, _SPELLING)


def ignored(name: str) -> bool:
    """No tensor says nothing."""
    return False
