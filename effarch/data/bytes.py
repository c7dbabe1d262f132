"""Text as bytes: the tokenizer that needs no file, no training and no network."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from effarch.data.tokenizer import Text, Tokenizer, TokenizerConfig
from effarch.registry import register

BOS = 256
EOS = 257
VOCAB_SIZE = 258


@cache
def byte_spelling() -> tuple[str, ...]:
    """The character that stands for each byte in the files of byte-level tokenizers (GPT-2's convention).

    Printable characters of Latin-1 stand for themselves, the other bytes for U+0100 and on, in their order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return tuple(chr(byte if byte in printable else 0x100 + others.index(byte)) for byte in range(256))


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """Ids 0..255 are the bytes of UTF-8 text, 256 begins a document, 257 ends it (and stops generation)."""

    kind: ClassVar[str] = "bytes"

    @property
    def vocab_size(self) -> int:
        """258."""
        return VOCAB_SIZE

    @property
    def bos_id(self) -> int:
        """256."""
        return BOS

    @property
    def eos_id(self) -> int:
        """257."""
        return EOS

    def encode(self, text: Text, *, bos: bool = False, eos: bool = False) -> np.ndarray:
        """``[T]`` int32 ids of ``text``, after ``bos_id`` if ``bos`` and before ``eos_id`` if ``eos``."""
        # A command line may hold bytes that are no UTF-8; Python spells them as surrogates, here they are bytes again.
        raw = text.encode("utf-8", errors="surrogateescape") if isinstance(text, str) else text
        ids = np.empty(len(raw) + bos + eos, np.int32)
        ids[int(bos) : int(bos) + len(raw)] = np.frombuffer(raw, np.uint8)
        if bos:
            ids[0] = BOS
        if eos:
            ids[-1] = EOS
        return ids

    def decode(self, ids: Any) -> str:
        """The text of ``ids`` (any integer sequence); begin and end marks are dropped, broken UTF-8 becomes U+FFFD.

        Raises:
          ValueError: an id outside ``0 .. vocab_size - 1``.
        """
        ids = np.asarray(ids, np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise ValueError(f"ids: expected 0 <= id < {self.vocab_size}, got {int(outside[0])}")
        return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def byte_counts(self, tokens: np.ndarray) -> np.ndarray:
        """1 where a token is a byte, 0 where it is a mark."""
        return (np.asarray(tokens) < 256).astype(np.int64)

    def token_map(self) -> dict[int, str]:
        """Bytes as byte-level tokenizers spell them, ``<bos>`` and ``<eos>``."""
        return dict(enumerate((*byte_spelling(), "<bos>", "<eos>")))

    def save(self, folder: str | Path) -> None:
        """Writes it as a byte-level BPE without merges, which gives the same ids."""
        tokens = self.token_map()
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in (BOS, EOS)],
            "normalizer": None,
            "pre_tokenizer": level,
            "post_processor": None,
            "decoder": level,
            "model": {"type": "BPE", "vocab": {token: i for i, token in tokens.items()}, "merges": []},
        }
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[BOS], "eos_token": tokens[EOS]}
        for name, value in (("tokenizer.json", content), ("tokenizer_config.json", settings)):
            (Path(folder) / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@register("bytes", kind="tokenizer")
class Bytes(TokenizerConfig):
    """Bytes of UTF-8, and two marks."""

    def rows(self) -> int:
        """258."""
        return VOCAB_SIZE

    def make(self, documents: Callable[[], Iterator[bytes]], identity: str, cache_dir: Path) -> ByteTokenizer:
        """The byte tokenizer; nothing is read."""
        return ByteTokenizer()
