"""Where text comes from. A source is a registered config; it lists files and cuts their contents into documents."""

import abc
import dataclasses
import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pydantic

from effarch.config import Config, UserError
from effarch.registry import register

# Folders of tests and tables, and modules that differ between two machines with the same Python.
_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}
)
_SKIPPED_MODULES = ("_sysconfigdata", "sitecustomize", "usercustomize")


@dataclasses.dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
      path: relative to the corpus, with forward slashes.
      group: documents of one group are never split between training and validation.
      content: its bytes, at least one.
    """

    path: str
    group: str
    content: bytes


class Source(Config, abc.ABC):
    """A set of files and the documents in them."""

    @abc.abstractmethod
    def paths(self) -> dict[str, Path]:
        """Every file by its relative path (forward slashes, valid UTF-8), in no particular order."""

    @abc.abstractmethod
    def documents(self, path: str, content: bytes) -> Iterator[Document]:
        """The documents in one file, some perhaps empty."""


def _relative(path: Path, root: Path) -> str:
    # A file name that is no UTF-8 reaches Python with surrogates in it, which Arrow refuses.
    return path.relative_to(root).as_posix().encode("utf-8", errors="backslashreplace").decode()


@register("python_stdlib", kind="source")
class PythonStdlib(Source):
    """The running interpreter's standard library: one document per source file, grouped by top-level package."""

    def paths(self) -> dict[str, Path]:
        """Every source file by its path below the library's folder."""
        root = Path(sysconfig.get_paths()["stdlib"])
        found = {}
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name.isidentifier() and name not in _SKIPPED_FOLDERS]
            for name in names:
                if name.endswith(".py") and not name.startswith(_SKIPPED_MODULES):
                    found[_relative(Path(folder, name), root)] = Path(folder, name)
        return found

    def documents(self, path: str, content: bytes) -> Iterator[Document]:
        """The file, in the group of its top-level package or module."""
        yield Document(path, path.split("/")[0].removesuffix(".py"), content)


@register("text_files", kind="source")
class TextFiles(Source):
    """The user's text files: one document per file, or several where ``separator`` stands between them.

    Args:
      files: file names or glob patterns (``**`` goes down folders).
      separator: text that ends a document inside a file, such as ``<|endoftext|>``; it is not part of any document.
    """

    files: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    separator: Annotated[str, pydantic.Field(min_length=1)] | None = None

    def paths(self) -> dict[str, Path]:
        """Every file by its path relative to the folder that holds them all.

        Raises:
          UserError: a pattern that matches no file.
        """
        found = set()
        for pattern in self.files:
            matches = {os.path.abspath(name) for name in glob.glob(os.path.expanduser(pattern), recursive=True)}
            matches = {name for name in matches if os.path.isfile(name)}
            if not matches:
                raise UserError(f"data.source.files: no file matches {pattern!r}")
            found |= matches
        root = os.path.commonpath([os.path.dirname(name) for name in found])
        return {_relative(Path(name), Path(root)): Path(name) for name in found}

    def documents(self, path: str, content: bytes) -> Iterator[Document]:
        """The file, its own group; or the texts between separators, each its own group, equal ones sharing theirs."""
        if self.separator is None:
            yield Document(path, path, content)
            return
        for n, piece in enumerate(content.split(self.separator.encode())):
            if piece.strip():
                yield Document(f"{path}#{n}", hashlib.sha256(piece).hexdigest()[:16], piece)
