"""Text, offline packing, and synthetic rows: from sources to batches whose order is a pure function."""

from effarch.data.batches import Batches, DataPosition
from effarch.data.bpe import BytePairs
from effarch.data.bytes import Bytes, ByteTokenizer
from effarch.data.prepare import DataConfig, Prepared, prepare
from effarch.data.recall import RecallConfig
from effarch.data.rows import Rows
from effarch.data.sources import PythonStdlib, Source, TextFiles
from effarch.data.targets import shift
from effarch.data.token_file import FileTokenizer, TokenizerFile, load_tokenizer
from effarch.data.tokenizer import Tokenizer

__all__ = [
    "Batches",
    "BytePairs",
    "ByteTokenizer",
    "Bytes",
    "DataConfig",
    "DataPosition",
    "FileTokenizer",
    "Prepared",
    "PythonStdlib",
    "RecallConfig",
    "Rows",
    "Source",
    "TextFiles",
    "Tokenizer",
    "TokenizerFile",
    "load_tokenizer",
    "prepare",
    "shift",
]
