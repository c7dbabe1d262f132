"""A model from a checkpoint's folder."""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import jax
import pydantic
from flax import nnx

from effarch import axes
from effarch.config import UserError
from effarch.hub.families import Format, family, model_type, rwkv
from effarch.hub.families import effarch as own
from effarch.hub.fields import Fields
from effarch.hub.folder import CONFIG, find_tensors, read_config
from effarch.hub.locate import locate
from effarch.hub.parameters import filled, names_of
from effarch.hub.rules import check
from effarch.hub.tensors import Tensor
from effarch.models.lm import LM, LMConfig, make_lm

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def read_lm_config(folder: str | Path) -> LMConfig:
    """Our config for the ``config.json`` of a folder, or for the tensors of RWKV, which come without one.

    Raises:
      UserError: a missing file, an unknown model type, a field that is missing, contradicts or is not supported.
    """
    return _config(locate(folder))[0]


def _config(folder: Path) -> tuple[LMConfig, Format]:
    if not (folder / CONFIG).exists():
        shapes = {name: t.shape for name, t in find_tensors(folder).items()}
        if rwkv.is_ours(shapes):
            return rwkv.config_of(shapes, str(folder)), cast(Format, rwkv)
    data, where = read_config(folder), str(folder / CONFIG)
    found = family(model_type(data, where), where)
    fields = Fields(data, where)
    try:
        config = found.config(fields)
    except pydantic.ValidationError as error:  # of our configs: sizes that do not fit one another
        raise UserError(f"{where}: {error.errors(include_url=False)[0]['msg']}") from error
    fields.finish()
    return config, found


def load_lm(
    folder: str | Path,
    *,
    dtype: str | None = None,
    param_dtype: str | None = None,
    rules: axes.Rules | None = None,
    done: Any = lambda _: None,
) -> LM:
    """The language model of a checkpoint's folder.

    Args:
      folder: with ``config.json`` and safetensors; RWKV's tensors as its authors publish them, a folder or a file; or
        a name of the hub.
      dtype, param_dtype: of activations, of parameters; None: as the tensors are stored, or as our own format says.
      rules: shards every parameter as it is read; None: all on the default device.
      done: told how many tensors have been read.

    Raises:
      UserError: anything in the folder that is missing, damaged, contradicts or is not supported; nothing is loaded.
    """
    folder = locate(folder)
    config, found = _config(folder)
    theirs = _renamed(found, {name: t for name, t in find_tensors(folder).items() if not found.ignored(name)})
    if found is not own:  # others do not say in what they compute
        stored = stored_dtype(theirs)
        config = config.replace(dtype=stored, param_dtype=stored)
    config = config.replace(dtype=dtype or config.dtype, param_dtype=param_dtype or config.param_dtype)
    if config.num_layers > len(theirs):  # before millions of layers are thought of
        raise UserError(f"{folder}: expected tensors of {config.num_layers} layers, got {len(theirs)} tensors")
    try:
        abstract = _abstract(config)
    except (TypeError, ValueError, OverflowError) as error:  # sizes that do not fit one another, or no array
        raise UserError(f"{folder}: expected sizes that make a model: {str(error).splitlines()[0]}") from error
    names, trained = names_of(abstract), names_of(abstract, nnx.Param)
    format_rules = found.rules(config, names)
    if config.tie_embeddings:
        table = next(rule.theirs[0] for rule in format_rules if rule.ours == ("embedding.table",))
        theirs = _without_tied_head(theirs, table)
    sizes = {n: t.shape for n, t in theirs.items()}
    check(format_rules, trained, sizes, where=str(folder), fixed=set(names) - set(trained))
    return filled(partial(make_lm, config), abstract, format_rules, theirs, rules_table=rules, done=done)


@lru_cache(maxsize=4)
def _abstract(config: LMConfig) -> LM:
    return jax.eval_shape(partial(make_lm, config))


def stored_dtype(theirs: dict[str, Tensor]) -> str:
    """The float dtype of most numbers."""
    sizes: dict[str, int] = {}
    for tensor in theirs.values():
        sizes[tensor.dtype.name] = sizes.get(tensor.dtype.name, 0) + tensor.bytes
    known = {name: size for name, size in sizes.items() if name in _DTYPES}
    return max(known, key=lambda name: known[name]) if known else "float32"


def _renamed(found: Format, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that the family's rules know, where it has several."""
    renamed = getattr(found, "renamed", None)
    names = {} if renamed is None else renamed(list(theirs))
    return {names.get(name, name): tensor for name, tensor in theirs.items()}


def _without_tied_head(theirs: dict[str, Tensor], table_name: str) -> dict[str, Tensor]:
    """Some files of tied models hold the head once more: it must be the embedding's copy."""
    head, table = theirs.get("lm_head.weight"), theirs.get(table_name)
    if head is None or table is None:
        return theirs
    if head.shape != table.shape or (head.read() != table.read()).any():
        raise UserError("tie_word_embeddings: expected lm_head.weight to be the embedding's copy, it is another tensor")
    return {name: t for name, t in theirs.items() if name != "lm_head.weight"}
