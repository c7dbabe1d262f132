"""Several real processes that run one command, as a cluster would start them."""

import socket
import subprocess
from pathlib import Path

from tests.train import tiny


def start(module: str, arguments: list[str], cache: Path, count: int, *more: str) -> list[subprocess.Popen]:
    """The processes of a run, started by hand, one CPU device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    by_hand = [f"processes.coordinator=localhost:{port}", f"processes.count={count}", *more]
    return [
        tiny.process(module, [*arguments, *by_hand, f"processes.index={index}"], cache / str(index))
        for index in range(count)
    ]


def finish(running: list[subprocess.Popen], code: int = 0, seconds: float = 600) -> list[str]:
    """What each printed; all must end with this exit code, in time."""
    return [tiny.finish(process, code, seconds) for process in running]
