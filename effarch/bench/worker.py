"""A process that measures one subject: ``python -m effarch.bench.worker < request.json``, the answer on stdout.

A process of its own for every row, so that the most it holds is that row's, a crash is one row's, and the environment
that a compiler for another accelerator needs is nobody else's.
"""

import dataclasses
import json
import os
import sys
from typing import Any

MARK = "effarch-bench-answer: "  # libraries print, too


def environment(target: str | None, peer: bool) -> dict[str, str]:
    """What a worker needs in its environment before it starts."""
    # Large temporaries in large pages: XLA on CPU takes them anew in every call, and they are zeroed page by page.
    chosen = {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")}
    if target is not None:
        from effarch.bench import targets

        chosen |= targets.get(target).environment()
    if peer:
        from effarch.bench import peers

        chosen |= peers.environment()
    return chosen


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What came of a request: ``{"ceilings": dtype}``, ``{"machine": command}``, or a subject and its limits."""
    import effarch.mixers  # noqa: F401  (registers)

    if "ceilings" in request:
        from effarch.bench.ceilings import ceilings

        return ceilings(request["ceilings"])
    if "machine" in request:
        from effarch.bench.machine import machine

        return machine(request["machine"])
    from effarch.bench.subject import Subject

    subject = Subject.model_validate(request["subject"])
    if subject.target is not None:  # which refuses what the target, not this machine, has not
        return _target(subject)
    if reason := subject.refused():
        return {"reason": reason}
    if subject.peer is not None:
        return _peer(subject, request)
    from effarch.bench.measure import measure

    limits = {name: request[name] for name in ("repeats", "time_limit", "memory_limit")}
    return dataclasses.asdict(measure(subject.program(), **limits))


def _peer(subject: Any, request: dict[str, Any]) -> dict[str, Any]:
    from effarch.bench import peers

    (peer,) = (p for p in peers.PEERS if p.name == subject.peer)
    found = peers.measure(
        peer,
        mode=subject.mode,
        batch=subject.batch_size,
        length=subject.length,
        heads=subject.heads,
        head_dim=subject.head_dim,
        dtype=subject.dtype,
        repeats=request["repeats"],
        time_limit=request["time_limit"],
    )
    program = subject.program()
    counted = {"tokens": program.tokens, "flops": program.flops, "traffic": program.bytes}
    return counted | {"seconds": found.seconds, "reason": found.reason, "error": found.error}


def _target(subject: Any) -> dict[str, Any]:
    from effarch.bench import targets
    from effarch.bench.estimate import compile_for
    from effarch.ops.platform import tracing_for

    target, program = targets.get(subject.target), subject.program()
    with tracing_for(target.traced):
        if reason := subject.refused():
            return {"reason": reason}
        traffic = program.bytes
    found = compile_for(target, program, donated=program.donated)
    held = found.memory
    return {
        "estimated_seconds": found.seconds,
        "bound": found.bound,
        "source": found.source,
        "compile_seconds": found.compile_seconds,
        "argument_bytes": None if held is None else held.arguments,
        "output_bytes": None if held is None else held.outputs,
        "temporary_bytes": None if held is None else held.temporaries,
        "flops": program.flops,
        "traffic": traffic,
        "tokens": program.tokens,
        "state_bytes": program.state_bytes,
        "reason": found.reason,
    }


def main() -> int:
    """Answers one request."""
    from effarch.config import UserError

    try:
        told = answer(json.loads(sys.stdin.read()))
    except (UserError, ValueError) as error:
        told = {"reason": str(error).splitlines()[0]}
    print(MARK + json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
