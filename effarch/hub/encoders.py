"""An encoder from a checkpoint's folder: BERT, RoBERTa, ViT; teachers of bidirectional students."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pydantic
from flax import nnx

from effarch import axes
from effarch.config import UserError
from effarch.hub.families import EncoderFamily, encoder_family, model_type
from effarch.hub.fields import Fields
from effarch.hub.folder import CONFIG, find_tensors, read_config
from effarch.hub.load import stored_dtype
from effarch.hub.locate import locate
from effarch.hub.parameters import filled, names_of
from effarch.hub.rules import check
from effarch.hub.tensors import Tensor
from effarch.models.classifier import ClassifierConfig, make_classifier
from effarch.models.encoder import Encoder, EncoderConfig, make_encoder
from effarch.models.masked_lm import MaskedLMConfig, make_masked_lm

_MAKE: dict[type[EncoderConfig], Callable[[Any], Encoder]] = {
    EncoderConfig: make_encoder,
    ClassifierConfig: make_classifier,
    MaskedLMConfig: make_masked_lm,
}


def read_encoder_config(folder: str | Path) -> EncoderConfig:
    """Our config for the ``config.json`` and the names of the tensors of a folder; errors as :func:`load_encoder`."""
    return _opened(locate(folder))[0]


def _opened(folder: Path) -> tuple[EncoderConfig, EncoderFamily, dict[str, Tensor]]:
    data, where = read_config(folder), str(folder / CONFIG)
    found = encoder_family(model_type(data, where), where)
    tensors = find_tensors(folder)
    known = found.renamed(list(tensors))
    theirs = {known.get(name, name): tensor for name, tensor in tensors.items()}
    if len(theirs) < len(tensors):
        raise UserError(f"{folder}: expected every tensor once, some are there under two names")
    fields = Fields(data, where)
    try:
        config = found.config(fields, list(theirs))
    except pydantic.ValidationError as error:  # of our configs: sizes that do not fit one another
        raise UserError(f"{where}: {error.errors(include_url=False)[0]['msg']}") from error
    fields.finish()
    return config, found, theirs


def load_encoder(
    folder: str | Path,
    *,
    dtype: str | None = None,
    param_dtype: str | None = None,
    rules: axes.Rules | None = None,
    done: Any = lambda _: None,
) -> Encoder:
    """The encoder of a checkpoint's folder, with the head that its config names.

    A :class:`effarch.models.masked_lm.MaskedLM` or a :class:`effarch.models.classifier.Classifier`, else bare. Left
    padding is another matter here: positions are counted from the first token (as in RoBERTa), so that padding changes
    nothing; transformers' BERT counts them from the first place.

    Args:
      folder: with ``config.json`` and safetensors; or a name of the hub.
      dtype, param_dtype: of activations, of parameters; None: as the tensors are stored.
      rules: shards every parameter as it is read; None: all on the default device.
      done: told how many tensors have been read.

    Raises:
      UserError: anything in the folder that is missing, damaged, contradicts or is not supported; nothing is loaded.
    """
    folder = locate(folder)
    config, found, theirs = _opened(folder)
    theirs = {name: tensor for name, tensor in theirs.items() if not found.ignored(name, config)}
    theirs = _without_copies(theirs, found.copies(config))
    stored = stored_dtype(theirs)
    config = config.replace(dtype=dtype or stored, param_dtype=param_dtype or stored)
    if config.num_layers > len(theirs):  # before millions of layers are thought of
        raise UserError(f"{folder}: expected tensors of {config.num_layers} layers, got {len(theirs)} tensors")
    make = partial(_MAKE[type(config)], config)
    try:
        abstract = jax.eval_shape(make)
    except (TypeError, ValueError, OverflowError) as error:  # sizes that make no array
        raise UserError(f"{folder}: expected sizes that make a model: {str(error).splitlines()[0]}") from error
    names, trained = names_of(abstract), names_of(abstract, nnx.Param)
    format_rules = found.rules(config, names)
    check(format_rules, trained, {name: tensor.shape for name, tensor in theirs.items()}, where=str(folder))
    return filled(make, abstract, format_rules, theirs, rules_table=rules, done=done)


def _without_copies(theirs: Mapping[str, Tensor], copies: Mapping[str, str]) -> dict[str, Tensor]:
    """Without what is there once more, which must be a copy."""
    for name, of in copies.items():
        if name not in theirs or of not in theirs:
            continue
        copy, original = theirs[name], theirs[of]
        if copy.shape != original.shape or (copy.read() != original.read()).any():
            raise UserError(f"tie_word_embeddings: expected {name} to be the copy of {of}, it is another tensor")
    return {name: tensor for name, tensor in theirs.items() if not (name in copies and copies[name] in theirs)}
