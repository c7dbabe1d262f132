"""A source's documents in a fixed order, what identifies them, and their split into training and validation."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from effarch.config import UserError
from effarch.data.sources import Document, Source


def read_documents(source: Source, max_bytes: int | None = None) -> Iterator[Document]:
    """The non-empty documents of a source, files in the order of their relative paths.

    Args:
      source: where they come from.
      max_bytes: stop after so many bytes (the last document is cut). The files read are then a sample that depends
        on nothing but their names, not the first ones of the alphabet.

    Raises:
      UserError: a file that cannot be read.
    """
    paths = source.paths()
    names = sorted(paths)
    if max_bytes is not None:
        names = _sample(paths, max_bytes)
    left = max_bytes
    for name in names:
        if left == 0:
            return
        try:
            content = paths[name].read_bytes()
        except OSError as error:
            raise UserError(f"data.source: cannot read {paths[name]}: {error.strerror}") from error
        for document in source.documents(name, content):
            if left is not None:
                document = dataclasses.replace(document, content=document.content[:left])
                left -= len(document.content)
            if document.content:
                yield document


def _sample(paths: Mapping[str, Path], max_bytes: int) -> list[str]:
    chosen, total = [], 0
    for name in sorted(paths, key=_stable_hash):
        if total >= max_bytes:
            break
        chosen.append(name)
        total += paths[name].stat().st_size
    return sorted(chosen)


def _stable_hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


class Digest:
    """SHA-256 over ``(path, content)`` of documents in their order; lengths keep neighbours apart."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, path: str, content: bytes) -> None:
        """Takes one more document."""
        name = path.encode()
        self._hash.update(f"{len(name)} {len(content)} ".encode() + name)
        self._hash.update(content)

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What one pass over a source tells: its digest, its documents, and the bytes of every group."""

    digest: str
    documents: int
    groups: Mapping[str, int]


def survey(source: Source, max_bytes: int | None = None) -> Corpus:
    """One pass over the source.

    Raises:
      UserError: there is no text in it, or a file cannot be read.
    """
    digest, documents, groups = Digest(), 0, {}
    for document in read_documents(source, max_bytes):
        digest.add(document.path, document.content)
        documents += 1
        groups[document.group] = groups.get(document.group, 0) + len(document.content)
    if not documents:
        raise UserError(f"data.source: the dataset is empty: no text in any file of {source.type_name}")
    return Corpus(digest.hexdigest(), documents, groups)


def validation_groups(groups: Mapping[str, int], fraction: float) -> frozenset[str]:
    """The groups held out: walked in the order of a hash of their names, taken while they fit into the fraction.

    So the set does not depend on the order of files, is never larger than asked unless one group alone is, and is
    never empty.

    Args:
      groups: bytes per group.
      fraction: share of all bytes to hold out, in (0, 1).

    Raises:
      UserError: fewer than two groups, so that one of the two sets would be empty.
    """
    if len(groups) < 2:
        raise UserError(
            f"data.source: one document cannot be split into training and validation: {next(iter(groups), 'none')!r}"
            " (give more files, or a separator)"
        )
    budget = fraction * sum(groups.values())
    chosen, total = set(), 0
    for name in sorted(groups, key=_stable_hash):
        if total + groups[name] <= budget:
            chosen.add(name)
            total += groups[name]
    return frozenset(chosen or {min(groups, key=lambda name: (groups[name], name))})
