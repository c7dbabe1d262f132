"""What a peer is."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

Tensors = dict[str, Any]  # of torch


def _unchanged(inputs: Tensors) -> Tensors:
    return inputs


@dataclasses.dataclass(frozen=True)
class Peer:
    """Somebody else's implementation of one of our ops, in torch.

    Attributes:
      name: of project and function. op: ours, see ``cases.OPS``. modules: what must be installed.
      load: imports the function that takes leaves by name and gives ``o [B, T, H, V]``. gpu: runs on NVIDIA GPUs only.
      prepare: leaves from inputs, outside of what is timed; a leaf under the name of an input is that input.
      dtypes: those it takes.
    """

    name: str
    op: str
    modules: tuple[str, ...]
    load: Callable[[], Callable[[Mapping[str, Any]], Any]]
    gpu: bool = False
    prepare: Callable[[Tensors], Tensors] = _unchanged
    dtypes: tuple[str, ...] = ("float32", "bfloat16")

    def missing(self) -> str | None:
        """What must be installed, in words; None where all is. Imports nothing."""
        if absent := [module for module in self.modules if importlib.util.find_spec(module) is None]:
            return f"{self.name}: {', '.join(absent)} is not installed; pip install 'effarch[peers]'"
        return None

    def unavailable(self, dtype: str = "float32") -> str | None:
        """Why it cannot run here, in words; None where it can."""
        if absent := self.missing():
            return absent
        if dtype not in self.dtypes:
            return f"{self.name}: takes {', '.join(self.dtypes)}, not {dtype}"
        if self.gpu:
            import torch

            if not torch.cuda.is_available():
                return f"{self.name}: needs an NVIDIA GPU"
        try:
            self.load()
        except (ImportError, AttributeError) as error:  # another version, that names it otherwise
            return f"{self.name}: {str(error).splitlines()[0]}"
        return None
