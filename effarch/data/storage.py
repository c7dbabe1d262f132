"""A folder of files that is either finished or not there, and that knows when it is broken.

It is built under a temporary name beside its own and renamed when it is complete. ``meta.json`` says what is in it;
each file's size and fingerprint are checked whenever the folder is opened.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Generator, Mapping
from pathlib import Path

import numpy as np

from effarch.config import UserError

META = "meta.json"
_BLOCK = 2**20
_BLOCKS = 64


def create(path: Path, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.memmap:
    """A new memory-mapped ``.npy`` file of zeros, its place on the disk taken at once.

    Raises:
      OSError: there is no room for it (a write to a sparse map would kill the process instead).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def fingerprint(path: Path) -> dict[str, int | str]:
    """Size in bytes and SHA-256 of a file; above 64 MiB, of 64 blocks of 1 MiB spread over it, both ends included."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _BLOCK * _BLOCKS:
            digest.update(file.read())
        else:
            for block in range(_BLOCKS):
                file.seek(block * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return {"bytes": size, "sha256": digest.hexdigest()}


@contextlib.contextmanager
def building(folder: Path) -> Generator[Path]:
    """A temporary folder that becomes ``folder`` when the block ends well and vanishes when it does not.

    If another process finishes ``folder`` first, that one stays: both hold the same.

    Raises:
      UserError: the place cannot be written to.
    """
    temporary = folder.with_name(f"{folder.name}.tmp-{socket.gethostname()}-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        temporary.mkdir()
        yield temporary
        try:
            os.replace(temporary, folder)
        except OSError:
            if not (folder / META).is_file():
                raise
    except OSError as error:
        raise UserError(f"data: cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Removes what killed processes of this machine left of the same folder."""
    prefix = f"{folder.name}.tmp-{socket.gethostname()}-"
    for path in folder.parent.iterdir():
        pid = path.name.removeprefix(prefix)
        if path.name.startswith(prefix) and pid.isdigit() and (int(pid) == os.getpid() or not _alive(int(pid))):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_meta(folder: Path, meta: Mapping) -> None:
    """Writes ``meta.json``, with the fingerprint of every file below ``folder`` under ``files``. To be called last."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): fingerprint(path) for path in paths}
    (folder / META).write_text(json.dumps({**meta, "files": files}, indent=2) + "\n")


def read_meta(folder: Path) -> dict:
    """The ``meta.json`` of a finished folder, after checking every file that it lists.

    Raises:
      UserError: ``meta.json`` or a file is missing, truncated or changed.
    """
    hint = f"; delete {folder} to build it again"
    try:
        meta = json.loads((folder / META).read_text())
        files = {folder / name: expected for name, expected in meta["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"data: {folder / META} is missing or corrupt{hint}") from error
    for path, expected in files.items():
        size = path.stat().st_size if path.is_file() else 0
        if size != expected["bytes"]:
            raise UserError(f"data: {path} is truncated: expected {expected['bytes']} bytes, got {size}{hint}")
        if fingerprint(path) != expected:
            raise UserError(f"data: {path} is corrupt: its SHA-256 is not the recorded one{hint}")
    return meta
