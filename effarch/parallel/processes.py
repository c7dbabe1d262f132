"""Several processes that train one model: how they find each other, what one does for all, what all agree on.

Every process runs the same command with the same config, on its own part of the devices, and all must see the same
``output_dir``. With one process every function here is the plain thing.
"""

import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Generator
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from effarch.config import Config, UserError
from effarch.typing import PyTree

T = TypeVar("T")

AUTO = "auto"
_FAILED = 1  # exit code of a process that lost the others


class ProcessesConfig(Config):
    """How the processes of a run find each other. On GPUs and CPUs, start one per host (or per GPU); on TPUs one per
    host.
    """

    coordinator: str | None = pydantic.Field(
        None,
        description='"auto": as SLURM, a TPU pod, Open MPI or Kubernetes say; HOST:PORT: of process 0, which must be '
        "reachable there, with count and index; null: this process is alone",
    )
    count: int | None = pydantic.Field(None, gt=0, description="processes in all; null with auto")
    index: int | None = pydantic.Field(None, ge=0, description="of this process, from 0; null with auto")
    heartbeat: int = pydantic.Field(
        100, gt=0, description="seconds without a sign of life after which a process is dead and the others end"
    )
    start: int = pydantic.Field(300, gt=0, description="seconds that the processes wait for each other at the start")

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Self:
        by_hand = self.coordinator not in (None, AUTO)
        for field in ("count", "index"):
            if by_hand and getattr(self, field) is None:
                raise ValueError(f"{field}: expected a number beside coordinator={self.coordinator}, got null")
            if not by_hand and getattr(self, field) is not None:
                raise ValueError(f"{field}: expected coordinator=HOST:PORT beside it, got {self.coordinator or 'null'}")
        if by_hand and not re.fullmatch(r".+:\d+", str(self.coordinator)):
            raise ValueError(f"coordinator: expected auto or HOST:PORT, got {self.coordinator!r}")
        if self.count is not None and self.index is not None and self.index >= self.count:
            raise ValueError(f"index: expected one below count = {self.count}, got {self.index}")
        return self


@contextlib.contextmanager
def started(config: ProcessesConfig) -> Generator[None]:
    """The processes of a run, from the moment that all are there to their common end; before anything else of JAX.

    When one of them fails, is killed or is lost, the others cannot go on: each says so in a line and ends, at once or
    when the heartbeat is missed, and the command goes on from the last checkpoint, with as many processes as one likes.

    Raises:
      UserError: they do not find each other. (One that arises inside the block, in one process or in all, is printed
        and ends the process with exit code 2.)
    """
    if config.coordinator is None:
        yield
        return
    by_hand = config.coordinator != AUTO
    try:
        jax.distributed.initialize(
            config.coordinator if by_hand else None,
            config.count,
            config.index,
            heartbeat_timeout_seconds=config.heartbeat,
            initialization_timeout=config.start,
        )
        any_of(False)  # connects them while all are here: on CPU they have 30 seconds for that, later any time
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"processes.coordinator: expected {config.coordinator} to start this run, {reason}") from error
    try:
        yield
    except BaseException as error:
        _end(error)
    jax.distributed.shutdown()


def _end(error: BaseException) -> None:
    """Ends this process without waiting for the others, which may be gone."""
    about = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, UserError):
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        code = 2
    elif isinstance(error, KeyboardInterrupt | SystemExit):
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 130
    elif lost := _lost(error):
        print(
            f"error: {about}: another process of this run is gone ({lost}); repeat the command to go on from the last "
            "checkpoint, with this or another number of processes",
            file=sys.stderr,
        )
        code = _FAILED
    else:
        traceback.print_exception(error)
        code = _FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_CONNECTION = re.compile(
    r"gloo|nccl|coordination|connection (reset|closed|refused)|heartbeat|barrier|socket|peer|unavailable|deadline",
    re.IGNORECASE,
)


def _lost(error: BaseException | None) -> str:
    """The first line of an error that came of a lost connection; "" of any other."""
    while error is not None:
        text = str(error).strip()
        if isinstance(error, RuntimeError | ValueError | OSError) and _CONNECTION.search(text):
            return text.splitlines()[0][:160]
        error = error.__cause__ or error.__context__
    return ""


def is_first() -> bool:
    """Whether this process is the one that writes what all of them share."""
    return jax.process_index() == 0


def on_first(work: Callable[[], T]) -> T:
    """What ``work`` returns in the first process, which alone runs it: JSON, for all.

    Raises:
      UserError: the one that ``work`` raised, in every process.
    """
    if jax.process_count() == 1:
        return work()
    told: dict[str, Any] = {}
    if is_first():
        try:
            told = {"value": work()}
        except UserError as error:
            told = {"lines": list(error.lines)}
    told = _broadcast(told)
    if "lines" in told:
        raise UserError(*told["lines"])
    return told["value"]


def first_before_others(work: Callable[[], T]) -> T:
    """``work`` in every process, in the first one before the others, which then find on the disk what it wrote.

    Raises:
      UserError: the one of the first process, in all of them.
    """
    found: list[T] = []

    def first() -> None:
        found.append(work())

    on_first(first)
    return found[0] if found else work()


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any of the processes; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray([flag])).any())


class Agreement:
    """A flag that any process may raise and that all see at the same step, without waiting for each other.

    What was told in one step is known in the next, as metrics are; alone, at once.
    """

    def __init__(self) -> None:
        self._told: Any = None
        if jax.process_count() > 1:
            mesh = Mesh(np.asarray(jax.devices()), ("all",))
            self._split, self._whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
            self._any = jax.jit(jnp.any, out_shardings=self._whole)

    def __call__(self, flag: bool) -> bool:
        """Tells this process's flag; whether any had told it by the call before."""
        if jax.process_count() == 1:
            return flag
        before = self._told is not None and bool(np.asarray(self._told))
        flags = jax.make_array_from_callback((jax.device_count(),), self._split, lambda _: np.asarray([flag]))
        self._told = self._any(flags)
        return before


def everywhere() -> Sharding:
    """Where an array is that every process can read whole: on its device, or on all of them."""
    if jax.process_count() == 1:
        return SingleDeviceSharding(jax.devices()[0])
    return NamedSharding(Mesh(np.asarray(jax.devices()), ("all",)), PartitionSpec())


def on_host(tree: PyTree) -> PyTree:
    """Every array whole, as numpy, in every process; all of them must ask."""
    leaves, structure = jax.tree.flatten(tree)
    split = [n for n, x in enumerate(leaves) if isinstance(x, jax.Array) and not _is_here(x)]
    if split:  # in one program
        gathered = jax.jit(lambda *xs: xs, out_shardings=everywhere())(*(leaves[n] for n in split))
        for n, x in zip(split, gathered, strict=True):
            leaves[n] = x
    return jax.tree.unflatten(structure, [np.asarray(x) for x in leaves])


def _is_here(x: jax.Array) -> bool:
    return x.is_fully_addressable or x.is_fully_replicated


def of_this_process(tree: T) -> T:
    """The same arrays, each whole on the first device of every process; all of them must ask.

    One process that has several devices leaves them split. Models of one graph then share their programs, wherever they
    come from.
    """
    if jax.process_count() == 1:
        return tree if jax.device_count() > 1 else jax.device_put(tree, everywhere())
    return jax.device_put(on_host(tree), jax.local_devices()[0])


def _broadcast(told: dict[str, Any]) -> dict[str, Any]:
    """JSON of the first process, in all."""
    text = np.frombuffer(json.dumps(told).encode(), np.uint8) if is_first() else np.zeros(0, np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(text), np.int32)))
    padded = text if is_first() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes().decode())
