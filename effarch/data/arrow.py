"""The door to ``datasets``: a source's documents as an Arrow table on disk, offline, leaving nothing elsewhere."""

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from effarch.config import UserError
from effarch.data.corpus import Digest, read_documents
from effarch.data.sources import Source

if TYPE_CHECKING:
    import datasets


def _rows(source: Source, max_bytes: int | None) -> Iterator[dict]:
    for document in read_documents(source, max_bytes):
        yield {
            "path": document.path,
            "group": document.group,
            "content": document.content,
            "size": len(document.content),
        }


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    # Its bars are global state; ours is shown instead.
    import datasets

    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            datasets.enable_progress_bars()


def as_dataset(source: Source, max_bytes: int | None, *, digest: str, cache_dir: Path) -> "datasets.Dataset":
    """Documents as a dataset with the columns ``path``, ``group``, ``content`` (bytes) and ``size`` (bytes).

    Args:
      source: where they come from.
      max_bytes: as in :func:`read_documents`.
      digest: what the documents must amount to (see :class:`Digest`).
      cache_dir: an own folder for the table; the caller removes it.

    Raises:
      UserError: the documents changed since the digest was taken.
    """
    import datasets

    features = datasets.Features(
        {
            "path": datasets.Value("string"),
            "group": datasets.Value("string"),
            "content": datasets.Value("large_binary"),
            "size": datasets.Value("int64"),
        }
    )
    with _quiet():
        table = datasets.Dataset.from_generator(
            _rows,
            features=features,
            cache_dir=str(cache_dir),
            gen_kwargs={"source": source, "max_bytes": max_bytes},
            fingerprint=digest[:16],
        )
    found = Digest()
    for row in table:
        found.add(row["path"], row["content"])
    if found.hexdigest() != digest:
        raise UserError("data.source: the files changed while they were read; run again")
    return table
