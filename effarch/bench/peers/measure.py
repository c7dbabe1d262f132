"""Timing a peer: first what it computes is compared with ours; what is wrong is told, not timed."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from effarch.bench.machine import cores
from effarch.bench.peers.cases import GATES, Inputs, draw, reference
from effarch.bench.peers.protocol import Peer

MODES = ("prefill", "training")  # forward, and forward with backward
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}  # root mean square of the difference over that of ours
ON_GPU = {"float32": 5e-3, "bfloat16": 2e-2}  # their float32 is TF32 in part


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a peer at one shape.

    Attributes:
      peer, op, mode, length: what ran. seconds: of each run, in order; () where none was timed.
      error: the largest difference from ours, relative, over outputs and gradients. reason: why it was not timed, "".
    """

    peer: str
    op: str
    mode: str
    length: int
    seconds: tuple[float, ...] = ()
    error: float | None = None
    reason: str = ""

    @property
    def median(self) -> float | None:
        """Seconds of the middle run."""
        return statistics.median(self.seconds) if self.seconds else None


def environment() -> dict[str, str]:
    """What a process that measures peers has in its environment: ours and theirs share the memory of a GPU."""
    return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "HF_HUB_OFFLINE": "1"}


def measure(
    peer: Peer,
    *,
    mode: str,
    batch: int,
    length: int,
    heads: int,
    head_dim: int,
    dtype: str = "float32",
    repeats: int = 5,
    time_limit: float = float("inf"),
    seed: int = 0,
) -> Outcome:
    """Compares, then times: after one run to warm up, ``repeats`` runs with fresh inputs.

    Args:
      peer: from ``PEERS``. mode: "prefill" (forward) or "training" (forward and backward).
      batch, length, heads, head_dim: B, T, H, K = V. dtype: of q, k and v.
      repeats: runs that count. time_limit: seconds after which no further run starts. seed: of the inputs.

    Raises:
      ValueError: ``mode`` is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    told = Outcome(peer.name, peer.op, mode, length)
    if reason := peer.unavailable(dtype):
        return dataclasses.replace(told, reason=reason)
    use_all_cores()
    device = "cuda" if _on_gpu() else "cpu"
    sizes = {"batch": batch, "length": length, "heads": heads, "head_dim": head_dim}
    run = peer.load()
    inputs = draw(peer.op, seed, **sizes)
    cotangent = np.random.default_rng(seed).normal(size=inputs["v"].shape).astype(np.float32)
    found = _once(run, _leaves(peer, inputs, dtype, device), _tensor("cotangent", cotangent, dtype, device))
    error = largest_difference(found, reference(peer.op, inputs, cotangent, dtype))
    allowed = (TOLERANCE if device == "cpu" else ON_GPU)[dtype]
    told = dataclasses.replace(told, error=error)
    if not error <= allowed:
        return dataclasses.replace(told, reason=f"differs from ours by {error:.2g}, more than {allowed:.0e}: not timed")
    seconds, began = [], time.perf_counter()
    for number in range(repeats + 1):
        leaves = _leaves(peer, draw(peer.op, seed + 1 + number, **sizes), dtype, device)
        weight = _tensor("cotangent", cotangent, dtype, device)
        start = _now(device)
        _forward(run, leaves) if mode == "prefill" else _backward(run, leaves, weight)
        seconds.append(_now(device) - start)
        if len(seconds) > 1 and time.perf_counter() - began > time_limit:
            break
    return dataclasses.replace(told, seconds=tuple(seconds[1:]))


def largest_difference(found: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> float:
    """Over what both have: root mean square of the difference over that of ours; NaN if either is not finite."""

    def size(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))

    return float(np.max([size(found[n] - ours[n]) / max(size(ours[n]), 1e-30) for n in found.keys() & ours.keys()]))


def use_all_cores() -> None:
    """Lets torch use the cores that this process may run on, as XLA does."""
    import torch

    torch.set_num_threads(cores())


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _tensor(name: str, x: np.ndarray, dtype: str, device: str) -> Any:
    import torch

    return torch.from_numpy(x).to(device=device, dtype=torch.float32 if name in GATES else getattr(torch, dtype))


def _leaves(peer: Peer, inputs: Inputs, dtype: str, device: str) -> dict[str, Any]:
    tensors = peer.prepare({name: _tensor(name, x, dtype, device) for name, x in inputs.items()})
    return {name: x.detach().contiguous().requires_grad_() for name, x in tensors.items()}


def _forward(run: Callable[[Mapping[str, Any]], Any], leaves: Mapping[str, Any]) -> Any:
    import torch

    with torch.no_grad():
        return run(leaves)


def _backward(run: Callable[[Mapping[str, Any]], Any], leaves: Mapping[str, Any], cotangent: Any) -> Any:
    o = run(leaves)
    o.backward(cotangent.to(o.dtype))
    return o


def _once(run: Callable[[Mapping[str, Any]], Any], leaves: dict[str, Any], cotangent: Any) -> dict[str, np.ndarray]:
    o = _backward(run, leaves, cotangent)
    found = {"o": o, **{name: x.grad for name, x in leaves.items() if x.grad is not None}}
    return {name: x.detach().float().cpu().numpy() for name, x in found.items()}


def _now(device: str) -> float:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()
