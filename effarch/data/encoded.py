"""Documents as ids, one after the other in a file, so that their lengths are known before they are packed."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from effarch.data.tokenizer import Tokenizer

_BATCH = 2**22  # bytes of text that are encoded at a time


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Documents of at least one token.

    Attributes:
      path: the file of all ids. dtype: of an id in it. lengths: tokens of each document.
      bytes: of text in all of them.
    """

    path: Path
    dtype: np.dtype
    lengths: np.ndarray
    bytes: int

    def __iter__(self) -> Iterator[np.ndarray]:
        """The ids of each document, in their order."""
        with self.path.open("rb") as file:
            for length in self.lengths.tolist():
                yield np.fromfile(file, self.dtype, length)


def encode_documents(
    documents: Iterator[bytes], tokenizer: Tokenizer, path: Path, advance: Callable[[int], None]
) -> Encoded:
    """Encodes documents, each between ``bos`` and ``eos`` where the tokenizer has them.

    Args:
      documents: their bytes.
      tokenizer: what to encode with.
      path: a file to write.
      advance: called with the bytes of text done.

    Raises:
      OSError: the file cannot be written.
    """
    dtype, lengths, size = id_dtype(tokenizer.vocab_size), [], 0
    with path.open("wb") as file:
        for batch in _batches(documents):
            for content, ids in zip(batch, tokenizer.encode_batch(batch, bos=True, eos=True), strict=True):
                advance(len(content))
                size += len(content)
                if len(ids):
                    file.write(ids.astype(dtype).tobytes())
                    lengths.append(len(ids))
    return Encoded(path, dtype, np.asarray(lengths, np.int64), size)


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def _batches(documents: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Documents in lists of ``_BATCH`` bytes or a little more."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
