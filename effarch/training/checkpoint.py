"""Checkpoints: the whole training state, the data position and the run's metadata, in one folder per step.

The one file that knows orbax, which takes long to import and so is imported where it is used. A state is stored flat,
``{"params.layers.w": array, ...}``, so that what is on disk can be compared with what we expect, name by name, before
anything is read.
"""

import contextlib
import gc
import logging
import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

import jax
from pydantic import Field

from effarch.config import Config, UserError
from effarch.parallel.processes import on_first
from effarch.training import tree as trees
from effarch.training.state import TrainState
from effarch.typing import PyTree

T = TypeVar("T")

_STATE = "state"


class CheckpointConfig(Config):
    """When to save, and what to keep."""

    every: int = Field(100, gt=0, description="steps between checkpoints")
    keep: int = Field(2, gt=0, description="newest checkpoints that stay on disk")
    resume: bool = Field(True, description="continue the run that is in the folder; false: refuse one")


class Checkpoints:
    """The checkpoints of one run, saved while training goes on.

    Only the process that holds the run's folder opens one: opening removes what a killed save left behind. To read the
    checkpoints of a run that may be training, use :func:`read_metadata` and :func:`restore_params`.

    Args:
      folder: of the run; the checkpoints are ``folder/checkpoints/<step>``.
      every: steps between saves.
      keep: newest checkpoints that stay.
    """

    def __init__(self, folder: str | Path, every: int, keep: int) -> None:
        self._folder = _root(folder)
        self._every = every
        from orbax.checkpoint import v1 as ocp

        with _explain(f"{self._folder}: cannot keep checkpoints here"):
            on_first(self._clear)  # orbax would, too, but some time later
            policy: Any = ocp.training.preservation_policies.LatestN(keep)  # which orbax's own protocol does not admit
            self._orbax = ocp.training.Checkpointer(str(self._folder.absolute()), preservation_policy=policy)
        self._written = self.latest()

    def _clear(self) -> None:
        for left in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(left)

    def latest(self) -> int | None:
        """The newest step that was saved completely."""
        newest = self._orbax.latest
        return None if newest is None else newest.step

    def save(
        self, step: int, state: TrainState, position: tuple[int, int], metadata: dict[str, Any], force: bool = False
    ) -> bool:
        """Starts saving when ``step`` is a multiple of ``every``; whether it did.

        The state may be donated as soon as this returns: its values have been copied to the host, or (on CPU) are held
        so that the donation copies. An earlier save that failed is reported here.

        Args:
          step: steps taken so far.
          state: the state after them.
          position: of the data: epoch, and batches of it consumed.
          metadata: JSON; the resolved config, versions and the like.
          force: save at any step, unless this one is saved already.

        Raises:
          UserError: this save could not start, or the one before it failed.
        """
        if step == self._written or not (force or step % self._every == 0):
            return False
        arrays = trees.flatten(state)
        note: dict[str, Any] = {
            "position": [int(n) for n in position],
            "metadata": metadata,
            "sums": trees.checksums(arrays),
        }
        with _explain(f"{self._folder}: a checkpoint could not be written"):
            self._orbax.save_checkpointables_async(step, {_STATE: arrays}, force=True, custom_metadata=note)
        self._written = step
        return True

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, tuple[int, int], dict[str, Any]]:
        """The state, the data position and the metadata saved at ``step``.

        Args:
          step: a saved step.
          abstract: shapes, dtypes and shardings to restore to (``state.abstract_state``).

        Raises:
          UserError: the checkpoint holds other arrays than ``abstract``, or cannot be read.
        """
        self.wait()
        folder = self._folder / str(step)
        note = _read_note(folder)
        state = _read_arrays(folder, abstract, note["sums"], whole=True)
        epoch, batch = note["position"]
        return state, (epoch, batch), note["metadata"]

    def wait(self) -> None:
        """Returns when nothing is being saved any more.

        Raises:
          UserError: the save failed.
        """
        with _explain(f"{self._folder}: a checkpoint could not be written"):
            self._orbax.wait()

    def close(self) -> None:
        """Waits for the last save, and lets go of the folder.

        Raises:
          UserError: the last save failed, so that its checkpoint does not exist.
        """
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # the reason has been given by wait
                self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(UserError):  # the error that ends the block is the one to show
            self.close()


def latest_step(folder: str | Path) -> int | None:
    """The newest complete checkpoint of a run's folder, which may be in use; None where there is none."""
    root = _root(folder)
    steps = [int(p.name) for p in root.iterdir() if p.name.isdigit()] if root.is_dir() else []
    return max(steps, default=None)


def read_metadata(folder: str | Path, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """The newest step (or the given one) of a run's folder, and the metadata saved with it.

    Raises:
      UserError: there is no checkpoint, or it cannot be read.
    """
    found = latest_step(folder) if step is None else step
    if found is None:
        raise UserError(f"{_root(folder)}: expected a checkpoint, found none")
    return found, _read_note(_root(folder) / str(found))["metadata"]


def restore_params(folder: str | Path, params: PyTree, rest: PyTree, step: int | None = None) -> tuple[PyTree, PyTree]:
    """Only what a model needs: its parameters and its other variables, without the optimizer.

    Args:
      folder: of the run.
      params: abstract NNX state of the parameters, with shardings or (one device) without.
      rest: the same of the other variables.
      step: which checkpoint; the newest by default.

    Raises:
      UserError: there is no checkpoint, it holds another model, or it cannot be read.
    """
    step, _ = read_metadata(folder, step)
    where = _root(folder) / str(step)
    tree = {"params": params, "rest": rest}
    tree = _read_arrays(where, tree, _read_note(where)["sums"], whole=False)
    return tree["params"], tree["rest"]


def _root(folder: str | Path) -> Path:
    return Path(folder) / "checkpoints"


@contextlib.contextmanager
def _explain(what: str) -> Generator[None]:
    """Turns whatever orbax raises, logs and prints (a dozen types, hundreds of lines) into one line."""
    reason, disabled, hooks = "", logging.root.manager.disable, (sys.excepthook, sys.unraisablehook)
    logging.disable(logging.CRITICAL)
    sys.excepthook = lambda *_: None  # for the threads of its event loop; what is raised here passes through
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
        error.__traceback__ = error.__cause__ = error.__context__ = None
    finally:
        if reason:  # what was left half done complains when it is collected: let it do so now, unheard
            sys.unraisablehook = lambda _: None
            gc.collect()
        sys.excepthook, sys.unraisablehook = hooks
        logging.disable(disabled)
    if reason:
        raise UserError(f"{what} ({reason})")


def _read_note(folder: Path) -> dict[str, Any]:
    from orbax.checkpoint import v1 as ocp

    with _explain(f"{folder}: the checkpoint cannot be read"):
        note = ocp.checkpointables_metadata(str(folder.absolute())).custom_metadata
        if not isinstance(note, dict) or set(note) != {"position", "metadata", "sums"}:
            raise ValueError("its metadata is damaged or not ours")
        return note


def _read_arrays(folder: Path, tree: T, sums: dict[str, int], *, whole: bool) -> T:
    """Restores the arrays of ``tree``; with ``whole`` the checkpoint must hold nothing else."""
    from orbax.checkpoint import v1 as ocp

    targets = {name: trees.target(x) for name, x in trees.flatten(tree).items()}
    with _explain(f"{folder}: the checkpoint cannot be read"):
        stored = ocp.checkpointables_metadata(str(folder.absolute())).metadata.get(_STATE)
        if stored is None:
            raise ValueError("its list of arrays is damaged or missing")
        lines = trees.differences(stored, targets, whole=whole)
        if lines:
            raise UserError(f"{folder}: the checkpoint belongs to another model or optimizer", *lines)
        context = ocp.Context()
        context.pytree.loading.partial_load = not whole
        with context:
            arrays = ocp.load_checkpointables(str(folder.absolute()), {_STATE: targets})[_STATE]
        found = trees.checksums(arrays)
        damaged = [name for name in targets if found[name] != sums[name]]
        if damaged:
            raise ValueError(f"the bits of {damaged[0]} are not those that were saved")
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in targets])
