"""Byte-level byte-pair encoding, trained on the training documents: any text is encoded and comes back unchanged."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pydantic

from effarch.data import storage
from effarch.data.bytes import byte_spelling
from effarch.data.token_file import FileTokenizer, library, load_tokenizer
from effarch.data.tokenizer import Tokenizer, TokenizerConfig
from effarch.registry import register

BOS, EOS = "<bos>", "<eos>"
_VERSION = 1


@register("bpe", kind="tokenizer")
class BytePairs(TokenizerConfig):
    """Byte-pair encoding (1508.07909) over bytes, words cut as GPT-2 does; trained once, kept in ``cache_dir``.

    Args:
      vocab_size: tokens, of which 256 are the bytes and two are marks; fewer if the text has fewer pairs that repeat.
    """

    vocab_size: int = pydantic.Field(4096, ge=258, le=2**24)

    def rows(self) -> int:
        """``vocab_size``, also where the text yields fewer tokens."""
        return self.vocab_size

    def make(self, documents: Callable[[], Iterator[bytes]], identity: str, cache_dir: Path) -> Tokenizer:
        """What was trained on these documents before, or is now."""
        inputs = {"version": _VERSION, "documents": identity, **self.model_dump(mode="json")}
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
        folder = Path(cache_dir) / f"bpe-{self.vocab_size}-{key}"
        if not folder.exists():
            with storage.building(folder) as temporary:
                train(documents(), self.vocab_size).save(temporary)
                storage.write_meta(temporary, {"inputs": inputs})
        storage.read_meta(folder)
        return load_tokenizer(folder)


def train(documents: Iterator[bytes], vocab_size: int) -> FileTokenizer:
    """A tokenizer of at most ``vocab_size`` tokens: two marks, 256 bytes, and merges in their order.

    Raises:
      UserError: the library is missing.
    """
    tokenizers = library()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[BOS, EOS],
        initial_alphabet=list(byte_spelling()),
    )
    texts = (document.decode("utf-8", errors="replace") for document in documents)
    tokenizer.train_from_iterator(texts, trainer)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    return FileTokenizer(tokenizer.to_str(pretty=True), {**settings, "clean_up_tokenization_spaces": False})
