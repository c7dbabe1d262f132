"""``effarch convert``: the model of a run or of a checkpoint into a new folder, in a format of your choice."""

from pathlib import Path
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx

from effarch.config import Config, UserError
from effarch.hub.encoders import load_encoder
from effarch.hub.export import export_encoder, export_lm, files_beside
from effarch.hub.families import is_encoder, model_type
from effarch.hub.folder import CONFIG, read_config
from effarch.hub.load import load_lm
from effarch.hub.locate import locate
from effarch.models.encoder import Encoder
from effarch.models.lm import LM, parameter_count
from effarch.training import load as runs

M = TypeVar("M", bound=LM | Encoder)


class ConvertConfig(Config):
    """What to convert, and into what."""

    source: str = pydantic.Field(
        description="folder of a run or of a checkpoint, a file of RWKV's, or a name of the hub"
    )
    target: str = pydantic.Field(description="folder to write; new or empty")
    format: Literal["auto", "effarch", "fla", "transformers"] = pydantic.Field(
        "auto", description="whose format; auto: that of a library that has the architecture, else effarch's own"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = pydantic.Field(
        None, description="of the parameters; null: as they are"
    )


def load_any(source: str | Path) -> LM:
    """The language model of a run (its newest step), of a checkpoint's folder, or of a name of the hub.

    Raises:
      UserError: it is neither, or cannot be read.
    """
    path = locate(source)
    if path.is_dir() and not (path / "checkpoints").is_dir() and not any(map(_is_checkpoint, path.iterdir())):
        raise UserError(f"{path}: expected {CONFIG} (a checkpoint) or checkpoints (a run) in it, found neither")
    return runs.load_lm(path) if (path / "checkpoints").is_dir() else load_lm(path)


def _is_checkpoint(path: Path) -> bool:
    return path.name == CONFIG or path.suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def load_model(source: str | Path) -> LM | Encoder:
    """:func:`load_any`, or an encoder from such a place."""
    path = locate(source)
    if (path / "checkpoints").is_dir():
        return runs.load_model(path)
    if (path / CONFIG).is_file() and is_encoder(model_type(read_config(path), str(path / CONFIG))):
        return load_encoder(path)
    return load_any(path)


def with_param_dtype(lm: M, dtype: str) -> M:
    """The model with its parameters in ``dtype``; its config says so."""
    graph, params, rest = nnx.split(lm, nnx.Param, ...)
    params = jax.jit(lambda params: jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params))(params)
    copy = nnx.merge(graph, params, rest)
    copy.config = lm.config.replace(param_dtype=dtype)  # ty: ignore[invalid-assignment]
    return copy


def convert(config: ConvertConfig) -> int:
    """``effarch convert SOURCE TARGET``."""
    source = locate(config.source)
    model = load_model(source)
    model = model if config.dtype is None else with_param_dtype(model, config.dtype)
    files = files_beside(source)
    if isinstance(model, LM):
        written = export_lm(config.target, model, format=config.format, files=files)
    elif config.format in ("auto", "effarch"):
        written = export_encoder(config.target, model, files=files)
    else:
        raise UserError(f"format: expected auto or effarch, for encoders go out in no other, got {config.format!r}")
    print(f"{config.target}: {written}, {parameter_count(model):,} parameters in {model.config.param_dtype}")
    return 0
