"""Tokenizers from files: ``tokenizer.json``, as on the Hugging Face hub, run by the ``tokenizers`` library."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pydantic

from effarch.config import UserError
from effarch.data.bytes import ByteTokenizer
from effarch.data.tokenizer import Text, Tokenizer, TokenizerConfig
from effarch.registry import register

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_REPLACED = {"▁": " ", "##": ""}  # spellings of SentencePiece and of WordPiece
#: What settings may name -> how an added token is spelled that is one where they do not (BERT's older folders).
_SPECIAL = {
    "bos_token": None,
    "eos_token": None,
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def library() -> Any:
    """The ``tokenizers`` library, which only those need who have such a file.

    Raises:
      UserError: it is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("data.tokenizer: expected the tokenizers library; pip install 'effarch[hub]'") from error
    return tokenizers


class FileTokenizer(Tokenizer):
    """What a ``tokenizer.json`` says, without its truncation, padding and templates of special tokens.

    Args:
      content: of ``tokenizer.json``.
      settings: of ``tokenizer_config.json``: ``bos_token``, ``eos_token``, ``pad_token``, and those of encoders,
        ``cls_token``, ``sep_token``, ``mask_token``; the rest is only kept.

    Raises:
      UserError: the library is missing, or does not understand the content, or a special token is not in it.
    """

    kind: ClassVar[str] = "file"

    def __init__(self, content: str, settings: Mapping[str, Any]) -> None:
        try:
            self._tokenizer = library().Tokenizer.from_str(content)
        except UserError:
            raise
        except Exception as error:  # the library's errors are plain Exceptions
            raise UserError(f"data.tokenizer: expected a tokenizer.json, got one that says: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # what text spells is text
        self._content, self._settings = content, dict(settings)
        self._tokens = {i: token for token, i in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        self._size = max(self._tokens) + 1
        self._specials = {name: self._special(name) for name in _SPECIAL}

    def _special(self, name: str) -> int | None:
        value = self._settings.get(name)
        token = value.get("content") if isinstance(value, Mapping) else value
        if token is None:
            return None
        index = self._tokenizer.token_to_id(token)
        if index is None and name in ("bos_token", "eos_token", "pad_token"):  # no language model uses the others
            raise UserError(f"data.tokenizer: {name}: expected a token of {FILE}, got {token!r}")
        return index

    @property
    def vocab_size(self) -> int:
        """The largest id and one."""
        return self._size

    @property
    def bos_id(self) -> int | None:
        """Of ``bos_token``; of ``cls_token`` where there is none."""
        return self._first("bos_token", "cls_token")

    @property
    def eos_id(self) -> int | None:
        """Of ``eos_token``; of ``sep_token`` where there is none."""
        return self._first("eos_token", "sep_token")

    def _first(self, *names: str) -> int | None:
        return next((found for name in names if (found := self._specials[name]) is not None), None)

    @property
    def pad_id(self) -> int | None:
        """Of ``pad_token``."""
        return self._specials["pad_token"]

    @property
    def mask_id(self) -> int | None:
        """Of ``mask_token``."""
        return self._specials["mask_token"]

    def encode(self, text: Text, *, bos: bool = False, eos: bool = False) -> np.ndarray:
        """``[T]`` int32 ids."""
        return self.encode_batch([text], bos=bos, eos=eos)[0]

    def encode_batch(self, texts: Sequence[Text], *, bos: bool = False, eos: bool = False) -> list[np.ndarray]:
        """:meth:`encode` of each text, on all cores."""
        before = [self.bos_id] if bos and self.bos_id is not None else []
        after = [self.eos_id] if eos and self.eos_id is not None else []
        found = self._tokenizer.encode_batch_fast([_as_str(text) for text in texts], add_special_tokens=False)
        return [np.asarray([*before, *encoding.ids, *after], np.int32) for encoding in found]

    def decode(self, ids: Any) -> str:
        """The text of ``ids``; special tokens, and ids that stand for no token, are dropped.

        Raises:
          ValueError: a negative id.
        """
        ids = [int(i) for i in np.asarray(ids, np.int64).reshape(-1)]
        if ids and min(ids) < 0:
            raise ValueError(f"ids: expected 0 <= id, got {min(ids)}")
        return self._tokenizer.decode([i for i in ids if i in self._tokens], skip_special_tokens=True)

    @cached_property
    def _bytes(self) -> np.ndarray:
        """Bytes of text by id."""
        decoder = json.loads(self._content).get("decoder") or {}
        by_byte = any(part.get("type") == "ByteLevel" for part in (decoder, *decoder.get("decoders", ())))
        added = self._tokenizer.get_added_tokens_decoder()
        counts = np.zeros(self._size, np.int64)
        for i, token in self._tokens.items():
            if i in added:
                counts[i] = 0 if added[i].special else len(token.encode())
            elif by_byte:
                counts[i] = len(token)
            elif _BYTE.fullmatch(token):
                counts[i] = 1
            else:
                for spelling, meant in _REPLACED.items():
                    token = token.replace(spelling, meant)
                counts[i] = len(token.encode())
        return counts

    @cached_property
    def _prefix(self) -> int:
        """Bytes that it puts before a text (a space: SentencePiece)."""
        return int(self._bytes[self.encode("a")].sum()) - 1

    def byte_counts(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes of each token; what follows ``bos_id`` without the space that encoding puts before a text."""
        tokens = np.asarray(tokens)
        counts = self._bytes[np.minimum(tokens, self._size - 1)]
        if self._prefix and self.bos_id is not None:
            counts[..., 1:] -= np.minimum(counts[..., 1:], self._prefix) * (tokens[..., :-1] == self.bos_id)
        return counts

    def token_map(self) -> dict[int, str]:
        """The file's vocabulary and its added tokens."""
        return dict(self._tokens)

    def about(self) -> dict[str, Any]:
        """The token map's digest, the file's (ids depend on its merges and normalizers), and what surrounds a text."""
        ends = {"bos_id": self.bos_id, "eos_id": self.eos_id}
        return {**super().about(), "sha256": hashlib.sha256(self._content.encode()).hexdigest(), **ends}

    def save(self, folder: str | Path) -> None:
        """Writes both files, as they were read."""
        (Path(folder) / FILE).write_text(self._content, encoding="utf-8")
        (Path(folder) / SETTINGS).write_text(json.dumps(self._settings, indent=1) + "\n", encoding="utf-8")


def _as_str(text: Text) -> str:
    raw = text.encode("utf-8", errors="surrogateescape") if isinstance(text, str) else text
    return raw.decode("utf-8", errors="replace")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a run's folder, or of one in the layout of the Hugging Face hub.

    Which tokens are special is read from ``tokenizer_config.json``, else from ``special_tokens_map.json``, else their
    ids from ``config.json``, else from their spelling. The byte tokenizer is known by its tokens and needs no library.

    Raises:
      UserError: there is no ``tokenizer.json``, or a file cannot be read.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file():
        if (folder / "config.yaml").is_file():  # a run from before tokenizers went with them
            return ByteTokenizer()
        others = sorted(path.name for path in folder.glob("*.model")) if folder.is_dir() else []
        hint = f" ({others[0]}: save it with transformers' fast tokenizer first)" if others else ""
        raise UserError(f"{folder}: expected {FILE}, found none{hint}")
    content = _read(folder / FILE)
    vocabulary = {token: i for i, token in ByteTokenizer().token_map().items()}
    if content.get("model", {}).get("vocab") == vocabulary:
        return ByteTokenizer()
    settings = {name: _read(folder / name) for name in (SETTINGS, "special_tokens_map.json", "config.json")}
    tokens = {token["id"]: token["content"] for token in content.get("added_tokens") or ()}
    found = dict(settings[SETTINGS])
    for name, spelled in _SPECIAL.items():
        index = settings["config.json"].get(f"{name}_id")
        index = index[0] if isinstance(index, list) and index else index
        if name not in found:
            known = tokens.get(index, spelled if spelled in tokens.values() else None)
            found[name] = settings["special_tokens_map.json"].get(name, known)
    return FileTokenizer((folder / FILE).read_text(encoding="utf-8"), found)


def _read(path: Path) -> dict[str, Any]:
    """A file's JSON; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected JSON, cannot read it ({str(error).splitlines()[0]})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


@register("file", kind="tokenizer")
class TokenizerFile(TokenizerConfig):
    """The ``tokenizer.json`` in a folder of the Hugging Face hub or of a run.

    Args:
      path: the folder.
    """

    path: str = pydantic.Field(min_length=1)

    def rows(self) -> int:
        """The rows of the folder's vocabulary."""
        return load_tokenizer(self.path).vocab_size

    def make(self, documents: Callable[[], Iterator[bytes]], identity: str, cache_dir: Path) -> Tokenizer:
        """The folder's tokenizer; no document is read."""
        return load_tokenizer(self.path)
