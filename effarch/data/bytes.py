"""Text as bytes: the tokenizer that needs no file, no training and no network."""

import dataclasses

import numpy as np

BOS = 256
EOS = 257
VOCAB_SIZE = 258


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """Ids 0..255 are the bytes of UTF-8 text, 256 begins a document, 257 ends it (and stops generation)."""

    bos_id: int = dataclasses.field(default=BOS, init=False)
    eos_id: int = dataclasses.field(default=EOS, init=False)
    vocab_size: int = dataclasses.field(default=VOCAB_SIZE, init=False)

    def encode(self, text: str | bytes, *, bos: bool = False, eos: bool = False) -> np.ndarray:
        """``[T]`` int32 ids of ``text``, after ``bos_id`` if ``bos`` and before ``eos_id`` if ``eos``."""
        # A command line may hold bytes that are no UTF-8; Python spells them as surrogates, here they are bytes again.
        raw = text.encode("utf-8", errors="surrogateescape") if isinstance(text, str) else text
        ids = np.empty(len(raw) + bos + eos, np.int32)
        ids[int(bos) : int(bos) + len(raw)] = np.frombuffer(raw, np.uint8)
        if bos:
            ids[0] = self.bos_id
        if eos:
            ids[-1] = self.eos_id
        return ids

    def decode(self, ids) -> str:
        """The text of ``ids`` (any integer sequence); begin and end marks are dropped, broken UTF-8 becomes U+FFFD.

        Raises:
          ValueError: an id outside ``0 .. vocab_size - 1``.
        """
        ids = np.asarray(ids, np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise ValueError(f"ids: expected 0 <= id < {self.vocab_size}, got {int(outside[0])}")
        return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")
