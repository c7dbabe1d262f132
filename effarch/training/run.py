"""The folder of a run: who owns it, which config it belongs to, what it was made with."""

import fcntl
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import yaml

from effarch.config import Config, UserError, to_yaml
from effarch.parallel.processes import on_first

_SHOWN = 5  # lines of a diff
# A run that was moved, or is saved, watched or split over devices differently, is still the same run (on another mesh
# up to the order of its sums).
_NOT_COMPUTED_WITH = ("output_dir", "run_name", "cache_dir", "checkpoint", "log", "mesh", "processes", "profile")


class Run:
    """An open run folder; held by one run alone until :meth:`close` or the end of its first process, kill -9 included.

    Attributes:
      folder: ``<output_dir>/<run_name>``.
      resume: whether the folder existed, with the same config.
    """

    def __init__(self, folder: Path, resume: bool, lock: int | None) -> None:
        self.folder = folder
        self.resume = resume
        self._lock = lock

    def close(self) -> None:
        """Lets another process in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_run(
    output_dir: str | Path, run_name: str, config: Config, *, resume: bool = True, free: Sequence[str] = ()
) -> Run:
    """Creates the folder of a run, or continues the run that is there.

    Args:
      output_dir: the folder of all runs; made when missing.
      run_name: the name of this one, a single folder name.
      config: the resolved config, written to ``config.yaml``. From the one there it may differ only in keys that no
        result depends on: ``output_dir``, ``run_name``, ``cache_dir`` and all below ``checkpoint``, ``log``,
        ``mesh``, ``processes`` and ``profile``.
      resume: whether a run that is there may be continued. What it has is never overwritten.
      free: further keys that may change, because every result is kept with what it depends on of them.

    Raises:
      UserError: the folder cannot be written, is in use, belongs to another config, is no run's folder, or holds a run
        that may not be continued.
    """
    if not run_name or run_name in (".", "..") or Path(run_name).name != run_name:
        raise UserError(f"run_name: expected the name of a folder, got {run_name!r}")
    folder, held = Path(output_dir) / run_name, []

    def open_there() -> bool:
        run = _open(folder, config, resume, free)
        held.append(run)
        return run.resume

    resumed = on_first(open_there)
    if not folder.is_dir():
        raise UserError(f"output_dir: expected the same folder in every process, {folder} is not here")
    return held[0] if held else Run(folder, resumed, None)


def _open(folder: Path, config: Config, resume: bool, free: Sequence[str]) -> Run:
    """Of one process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"{folder}: expected a folder that can be written, got {error.strerror}") from error
    try:
        # A lock on the folder itself: no file to go stale, and the kernel lets go of it with the process.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Run(folder, _claim(folder, config, resume, free), lock)
    except BlockingIOError as error:
        os.close(lock)
        raise UserError(f"{folder}: another process is writing to this run") from error
    except OSError as error:
        os.close(lock)
        raise UserError(f"{folder}: expected a folder that can be written, got {error.strerror}") from error
    except BaseException:
        os.close(lock)
        raise


def _claim(folder: Path, config: Config, resume: bool, free: Sequence[str]) -> bool:
    """Writes or compares the config; whether the run was there."""
    path = folder / "config.yaml"
    if not path.exists():
        foreign = sorted(p.name for p in folder.iterdir() if not p.name.startswith(_TEMPORARY))
        if foreign:
            raise UserError(f"{folder}: expected an empty folder or a run's (with config.yaml), found {foreign[0]!r}")
        write_atomic(path, to_yaml(config))
        return False
    if not resume:
        raise UserError(f"{folder}: expected no run here (checkpoint.resume=false); choose another run_name")
    try:
        there = dict(_flat(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected YAML, cannot read it") from error
    here = dict(_flat(yaml.safe_load(to_yaml(config))))
    names = [name for name in {**there, **here} if name.split(".")[0] not in (*_NOT_COMPUTED_WITH, *free)]
    differ = [name for name in names if there.get(name) != here.get(name)]
    if differ:
        lines = [f"{name}: the run has {there.get(name)!r}, got {here.get(name)!r}" for name in differ[:_SHOWN]]
        more = [f"... and {len(differ) - _SHOWN} more"] if len(differ) > _SHOWN else []
        raise UserError(
            f"{folder}: this run has another config; choose another run_name or the same config", *lines, *more
        )
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: expected a folder that can be written, got Permission denied")
    return True


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


_TEMPORARY = ".writing-"


def write_atomic(path: str | Path, text: str) -> None:
    """Writes a file that is there either whole or not at all, even after a crash."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp gives 0600
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def versions() -> dict[str, str]:
    """What a run was made with: Python, the packages that decide about numbers, the platform and its devices."""
    found = {"python": platform.python_version()}
    for package in ("effarch", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    devices = jax.devices()
    found["devices"] = f"{len(devices)} x {devices[0].device_kind}"
    found["platform"] = jax.default_backend()
    return found
