"""A checkpoint's folder: ``config.json``, and the tensors of ``model.safetensors`` or of the shards of its index.

Nothing outside of the folder is opened: names in an index are plain file names. Everything is checked before the first
tensor is read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effarch.config import UserError
from effarch.hub.tensors import Tensor, tensors

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      UserError: no such file, or it holds something else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise UserError(f"{path}: {next(n for n in names if names.count(n) > 1)!r} stands there twice")
        return found

    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: expected JSON: {error}".splitlines()[0]) from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``. Raises ``UserError`` where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: expected the folder of a checkpoint, found none")
    return read_json(folder / CONFIG)


def find_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, none of them read.

    Args:
      folder: with ``model.safetensors``, or an index and its shards, or one other ``*.safetensors``; or that file.

    Raises:
      UserError: no tensors, pickles only, an index that does not fit its shards, a damaged file.
    """
    if folder.is_file():
        return tensors(folder)
    if (folder / INDEX).is_file():
        return _sharded(folder)
    if (folder / SINGLE).is_file():
        return tensors(folder / SINGLE)
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return tensors(others[0])
    if pickles := sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)):
        raise UserError(
            f"{folder}: expected {SINGLE}, got {pickles[0]}, a pickle, which could run any code: load it where you"
            " trust it and save it again with transformers' save_pretrained"
        )
    found = f"{len(others)} other *.safetensors and no index" if others else "none"
    raise UserError(f"{folder}: expected {SINGLE} or {INDEX}, found {found}")


def _sharded(folder: Path) -> dict[str, Tensor]:
    path = folder / INDEX
    where = read_json(path).get("weight_map")
    if not isinstance(where, Mapping) or not where or not all(isinstance(f, str) for f in where.values()):
        raise UserError(f'{path}: expected "weight_map" from names of tensors to names of files')
    for file in where.values():
        if not file.endswith(".safetensors") or Path(file).name != file or "\\" in file or "\0" in file:
            raise UserError(f"{path}: expected names of .safetensors files in this folder, got {file!r}")
    shards: dict[str, dict[str, Tensor]] = {}
    there = {entry.name for entry in folder.iterdir()}
    for file in sorted(set(where.values())):
        if file not in there:
            raise UserError(f"{folder}: expected the shard {file[:80]} of the index, found none")
        shards[file] = tensors(folder / file)
    found: dict[str, Tensor] = {}
    for file, inside in shards.items():
        for name, tensor in inside.items():
            if name in found:
                raise UserError(f"{folder}: tensor {name} stands in two shards, {found[name].path.name} and {file}")
            if where.get(name) != file:
                told = f"says {where[name]}" if name in where else "does not name it"
                raise UserError(f"{folder}: tensor {name} stands in {file}, but the index {told}")
            found[name] = tensor
    if missing := sorted(set(where) - set(found)):
        raise UserError(f"{folder}: tensor {missing[0]} is missing in {where[missing[0]]}, where the index has it")
    return found
