"""A process that compiles steps for one target: a request per line of stdin, an answer per line of stdout.

A process of its own because a compiler for another machine wants its environment before jax is imported, and because
what crashes there is a plan's, not the caller's. It lives as long as a plan: a bisection asks many times.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from effarch.bench.targets import Target
from effarch.config import UserError

MARK = "effarch-plan-answer: "  # libraries print, too


class Worker:
    """The process, seen from outside."""

    def __init__(self, target: Target) -> None:
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "effarch.plan.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | target.environment(),
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
          UserError: a mistake that the process found, or its end.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # both are pipes
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise UserError(self._end()) from None
        for line in stdout:
            if line.startswith(MARK):
                told = json.loads(line[len(MARK) :])
                if "mistakes" in told:
                    raise UserError(*told["mistakes"])
                return told
        raise UserError(self._end())

    def _end(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = [line for line in self._errors.read().splitlines() if line.strip() and not line.startswith(("-", " "))]
        how = f"killed by signal {-code}" + (" (out of memory?)" if code == -9 else "") if code < 0 else f"exit {code}"
        return f"plan: the process that compiles ended ({how}){': ' + said[-1][:300] if said else ''}"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """One step, compiled and taken apart; see :func:`effarch.plan.run.plan` for what is asked."""
    import effarch.mixers  # noqa: F401  (registers)
    from effarch.bench.topology import parse
    from effarch.experiment.config import PretrainConfig
    from effarch.experiment.distill import DistillConfig
    from effarch.ops.platform import tracing_for
    from effarch.plan.examine import examine, rules_for, step_of

    schema = {"PretrainConfig": PretrainConfig, "DistillConfig": DistillConfig}[request["schema"]]
    config, target = schema.model_validate(request["config"]), parse(request["target"])
    if request["memory"] is not None:
        target = dataclasses.replace(target, memory=request["memory"])
    rules = rules_for(config, target)
    with tracing_for(target.traced):
        step = step_of(config, request["what"], request["stage"], request["sizes"], rules)
    found = examine(request["name"], step, target)
    return dataclasses.asdict(found)


def main() -> int:
    """Answers until nobody asks any more."""
    for line in sys.stdin:
        try:
            told = answer(json.loads(line))
        except UserError as error:
            told = {"mistakes": list(error.lines)}
        print(MARK + json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
