"""BERT (1810.04805): bare, with the masked language model's head, or with one over classes.

A file of pretraining (``BertForPreTraining``) is read as a masked language model; what is for the order of two texts
says nothing there.
"""

from collections.abc import Mapping, Sequence

from effarch.hub.families import decoder, encoder
from effarch.hub.fields import Fields
from effarch.hub.rules import Rule, Shape, same
from effarch.models.classifier import ClassifierConfig
from effarch.models.encoder import EncoderConfig
from effarch.models.masked_lm import MaskedLMConfig

_PREFIX = "bert."
_HEAD = "cls.predictions"


def config(fields: Fields, names: Sequence[str]) -> EncoderConfig:
    """Ours for theirs."""
    fields.ignore("directionality", *(name for name in fields.names if name.startswith("pooler_")))  # TensorFlow's
    length = fields.positive("max_position_embeddings", 512)
    return encoder.text_encoder(fields, names, length=length, token_types=2, prefix=_PREFIX)


def rules(config: EncoderConfig, names: Mapping[str, Shape]) -> list[Rule]:
    """The tensors of a model."""
    found = encoder.text_rules(config, names, _PREFIX)
    found.append(same("positions", f"{_PREFIX}embeddings.position_embeddings.weight", names["positions"]))
    if config.pooler:
        found += decoder.projection("pooler", f"{_PREFIX}pooler.dense", names)
    if isinstance(config, ClassifierConfig):
        found += decoder.projection("head", "classifier", names)
    if isinstance(config, MaskedLMConfig):
        transform = f"{_HEAD}.transform"
        found += encoder.masked_head(names, f"{transform}.dense", f"{transform}.LayerNorm", f"{_HEAD}.bias")
    return found


def ignored(name: str, config: EncoderConfig) -> bool:
    """What older files have and says nothing, or is for a head that the model has not."""
    other = (f"{_PREFIX}pooler.", "cls.seq_relationship.") if isinstance(config, MaskedLMConfig) else ()
    return name.endswith("embeddings.position_ids") or name.startswith(other)


def copies(config: EncoderConfig) -> dict[str, str]:
    """Tensors that may be there once more -> of which."""
    if not isinstance(config, MaskedLMConfig):
        return {}
    table = f"{_PREFIX}embeddings.word_embeddings.weight"
    return {f"{_HEAD}.decoder.weight": table, f"{_HEAD}.decoder.bias": f"{_HEAD}.bias"}


def renamed(names: Sequence[str]) -> dict[str, str]:
    """Names as newer models with a head have them; older norms have a gamma and a beta."""
    found = decoder.renamed(names, prefix=_PREFIX)
    ends = {".gamma": ".weight", ".beta": ".bias"}
    for name, known in found.items():
        for old, new in ends.items():
            if known.endswith(old):
                found[name] = known.removesuffix(old) + new
    return found
