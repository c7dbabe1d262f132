"""A checkpoint's folder, written: it is there whole, or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from effarch.config import UserError
from effarch.hub.families import encoder_family, family, model_type
from effarch.hub.folder import CONFIG, INDEX, SINGLE
from effarch.hub.parameters import names_of, written
from effarch.models.encoder import Encoder
from effarch.models.lm import LM

SHARD_BYTES = 5 * 10**9  # as transformers has it


def write_checkpoint(
    folder: str | Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    files: Mapping[str, str | bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes ``config.json``, the tensors (in shards with an index where one file would be too large) and other files.

    Args:
      folder: must not exist, or be empty. config: the content of ``config.json``.
      tensors: names and values, taken one at a time. files: further files, by name.
      shard_bytes: the most that a file of tensors holds, unless one tensor alone is larger.

    Raises:
      UserError: the folder is not empty, or cannot be written; nothing is left behind.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: expected a new or empty folder, it holds something")
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_tensors(temporary, tensors, shard_bytes)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, content in (files or {}).items():
            (temporary / name).write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_tensors(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> None:
    shards: list[dict[str, int]] = []
    held: dict[str, np.ndarray] = {}

    def flush() -> None:
        _save(folder / f"shard-{len(shards)}", held)
        shards.append({name: x.nbytes for name, x in held.items()})
        held.clear()

    for name, x in tensors:
        if held and sum(y.nbytes for y in held.values()) + x.nbytes > shard_bytes:
            flush()
        held[name] = x
    flush()
    if len(shards) == 1:
        os.replace(folder / "shard-0", folder / SINGLE)
        return
    where: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        os.replace(folder / f"shard-{i}", folder / file)
        where |= dict.fromkeys(shard, file)
    total = sum(size for shard in shards for size in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _save(path: Path, held: Mapping[str, np.ndarray]) -> None:
    from safetensors import TensorSpec, serialize_file

    specs = {
        name: TensorSpec(dtype=x.dtype.name, shape=x.shape, data_ptr=x.ctypes.data, data_len=x.nbytes)
        for name, x in held.items()
    }
    serialize_file(specs, path, metadata={"format": "pt"})  # transformers wants to be told


def save_lm(
    folder: str | Path, lm: LM, config: Mapping[str, Any], *, files: Mapping[str, str | bytes] | None = None
) -> Path:
    """Writes a language model in the format of ``config["model_type"]``.

    Args:
      folder: new. lm: the model. config: the ``config.json`` that describes it (a family's ``export``).
      files: beside it: tokenizer, model card.

    Raises:
      UserError: see :func:`write_checkpoint`.
    """
    found = family(model_type(config, CONFIG), CONFIG)
    names = names_of(jax.eval_shape(lambda: lm))
    return write_checkpoint(folder, config, written(lm, found.rules(lm.config, names)), files=files)


def save_encoder(
    folder: str | Path, encoder: Encoder, config: Mapping[str, Any], *, files: Mapping[str, str | bytes] | None = None
) -> Path:
    """Writes an encoder, whatever stands on it, in the format of ``config["model_type"]``; as :func:`save_lm`."""
    found = encoder_family(model_type(config, CONFIG), CONFIG)
    names = names_of(jax.eval_shape(lambda: encoder))
    return write_checkpoint(folder, config, written(encoder, found.rules(encoder.config, names)), files=files)
