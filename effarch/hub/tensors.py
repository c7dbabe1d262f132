"""Tensors in a safetensors file: their names, dtypes and shapes from its header, their values one by one.

The file is checked before any of it is used: by the safetensors library, which refuses headers that overlap, leave
gaps or point outside, and by its size. A tensor is read when it is asked for, straight into an array of its own, so
that no page of the file stays in this process.
"""

import dataclasses
import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np

from effarch.config import UserError

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_LFS = b"version https://git-lfs"
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")  # torch.save of today, of once


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file.

    Attributes:
      path: of the file. dtype, shape: what it is. offset: its first byte in the file.
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Its values, in an array of its own.

        Raises:
          UserError: the file has become shorter, or cannot be read.
        """
        count = math.prod(self.shape)
        try:
            found = np.fromfile(self.path, self.dtype, count, offset=self.offset)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from error
        if found.size != count:
            raise UserError(f"{self.path}: truncated: expected {self.offset + self.bytes} bytes or more")
        return found.reshape(self.shape)


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, none of them read.

    Raises:
      UserError: no such file, a Git LFS pointer, a pickle, a damaged header, a dtype that is not read here.
    """
    import safetensors

    try:
        with path.open("rb") as file:
            start = file.read(9)
            if _LFS.startswith(start[:7]) and start[:7]:
                raise UserError(f"{path}: is a Git LFS pointer, not the tensors: run `git lfs pull` in its folder")
            if start.startswith(_PICKLES) and start[8:] != b"{":  # a header's length may begin with the same bytes
                raise UserError(
                    f"{path}: is a pickle, which could run any code: load it where you trust it, save it as safetensors"
                )
        with safetensors.safe_open(path, framework="numpy"):
            pass  # the header is whole and within the file
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: expected a safetensors file: {error}".splitlines()[0]) from error
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{path}: {name}: expected one of {', '.join(DTYPES)}, got dtype {entry['dtype']}")
        begin = entry["data_offsets"][0]
        found[name] = Tensor(path, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + begin)
    return found
