"""Text, offline packing, and synthetic rows: from sources to batches whose order is a pure function."""

from effarch.data.batches import Batches, DataPosition
from effarch.data.bytes import ByteTokenizer
from effarch.data.prepare import DataConfig, Prepared, prepare
from effarch.data.recall import RecallConfig
from effarch.data.rows import Rows
from effarch.data.sources import PythonStdlib, Source, TextFiles
from effarch.data.targets import shift

__all__ = [
    "Batches",
    "ByteTokenizer",
    "DataConfig",
    "DataPosition",
    "Prepared",
    "PythonStdlib",
    "RecallConfig",
    "Rows",
    "Source",
    "TextFiles",
    "prepare",
    "shift",
]
