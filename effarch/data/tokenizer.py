"""What makes ids of text and text of ids: the interface, and the base of the configs that choose one."""

import abc
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from effarch.config import Config

Text = str | bytes


class Tokenizer(abc.ABC):
    """A fixed map between text and ids. Text never becomes a special token, whatever it spells.

    Attributes:
      kind: "bytes" or "file".
    """

    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Every id is below it; a model may have more rows."""

    @property
    @abc.abstractmethod
    def bos_id(self) -> int | None:
        """What begins a document; None: nothing does."""

    @property
    @abc.abstractmethod
    def eos_id(self) -> int | None:
        """What ends a document and stops generation, perhaps the same as ``bos_id``; None: nothing does."""

    @property
    def pad_id(self) -> int | None:
        """What fills up rows elsewhere; here padding is ``segment_ids`` 0, whatever the token."""
        return None

    @property
    def mask_id(self) -> int | None:
        """What masked language models see in the place of a hidden token; None: it has none."""
        return None

    @abc.abstractmethod
    def encode(self, text: Text, *, bos: bool = False, eos: bool = False) -> np.ndarray:
        """``[T]`` int32 ids of ``text``, between ``bos_id`` and ``eos_id`` where they are asked for and exist.

        Args:
          text: a string, or bytes of UTF-8; bytes that are none become U+FFFD where ids are not of bytes.
          bos: whether to begin with ``bos_id``.
          eos: whether to end with ``eos_id``.
        """

    def encode_batch(self, texts: Sequence[Text], *, bos: bool = False, eos: bool = False) -> list[np.ndarray]:
        """:meth:`encode` of each text, in parallel where the tokenizer can."""
        return [self.encode(text, bos=bos, eos=eos) for text in texts]

    @abc.abstractmethod
    def decode(self, ids: Any) -> str:
        """The text of ``ids`` (any integer sequence); special tokens are dropped, broken UTF-8 becomes U+FFFD.

        Raises:
          ValueError: an id that cannot be one.
        """

    def continuation(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """The text that ``new`` adds after ``prompt``: a token's text may depend on whether it stands first."""
        return self.decode([*prompt, *new])[len(self.decode(prompt)) :]

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """What ends a generated text."""
        return () if self.eos_id is None else (self.eos_id,)

    @abc.abstractmethod
    def byte_counts(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes of text that each token of rows ``[..., T]`` stands for, int64; 0 for special tokens."""

    @abc.abstractmethod
    def token_map(self) -> dict[int, str]:
        """The token of every id, special ones too, as the tokenizer spells it."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the token map: tokenizers with the same one agree on what an id means."""
        pairs = sorted(self.token_map().items())
        return hashlib.sha256(json.dumps(pairs, ensure_ascii=True).encode()).hexdigest()

    def difference(self, other: "Tokenizer") -> str | None:
        """The first id that means another token to ``other``, in words; None where the token maps are equal."""
        if self.digest == other.digest:
            return None
        ours, theirs = self.token_map(), other.token_map()
        first = min(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
        return f"token {first}: {_shown(ours, first)} against {_shown(theirs, first)}"

    def about(self) -> dict[str, Any]:
        """What identifies it, JSON: part of what determines prepared rows, and of a checkpoint's metadata."""
        return {"type": self.kind, "digest": self.digest, "vocab_size": self.vocab_size}

    @abc.abstractmethod
    def save(self, folder: str | Path) -> None:
        """Writes ``tokenizer.json`` and ``tokenizer_config.json``, as on the Hugging Face hub."""


def _shown(tokens: dict[int, str], index: int) -> str:
    return repr(tokens[index]) if index in tokens else "none"


class TokenizerConfig(Config, abc.ABC):
    """Base of the tokenizers that a config can name, chosen by ``type``."""

    @abc.abstractmethod
    def rows(self) -> int:
        """Rows that a model's embedding needs; known without the text.

        Raises:
          UserError: a file that cannot be read.
        """

    @abc.abstractmethod
    def make(self, documents: Callable[[], Iterator[bytes]], identity: str, cache_dir: Path) -> Tokenizer:
        """The tokenizer.

        Args:
          documents: the training documents, for what is trained on them.
          identity: a digest of them.
          cache_dir: where what was trained is kept.

        Raises:
          UserError: files that cannot be read or written, or a library that is missing.
        """
