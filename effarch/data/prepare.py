"""Text to rows, once: the folder of a config is built when it is not there and opened when it is."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import rich.console
import rich.progress

from effarch.config import Config, UserError
from effarch.data import storage
from effarch.data.alphabet import BYTES, Alphabet, alphabet_of
from effarch.data.arrow import as_dataset
from effarch.data.bytes import ByteTokenizer
from effarch.data.corpus import Corpus, read_documents, survey, validation_groups
from effarch.data.encoded import encode_documents, id_dtype
from effarch.data.packing import place, plan
from effarch.data.recall import RecallConfig, recall_row
from effarch.data.rows import Rows
from effarch.data.sources import PythonStdlib, Source
from effarch.data.tokenizer import Tokenizer, TokenizerConfig
from effarch.registry import Choice

VERSION = 1
_TRAIN, _EVAL = 0, 1  # streams of recall rows


class DataConfig(Config):
    """What to train on.

    Args:
      source: where the text comes from.
      max_bytes: read no more than this of it (a sample of its files); null for all.
      validation_fraction: share of the text's bytes held out, in (0, 1); whole groups (top-level packages, files).
      tokenizer: what makes ids of the text; null: bytes, or the teacher's own where it is a folder that has one.
      recall: rows that need memory, mixed into the training rows, and a set that measures it.
    """

    source: Annotated[Source, Choice("source")] = PythonStdlib()
    max_bytes: Annotated[int, pydantic.Field(ge=1)] | None = None
    validation_fraction: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.1
    tokenizer: Annotated[TokenizerConfig, Choice("tokenizer")] | None = pydantic.Field(
        None, description="null: bytes, or the teacher's own"
    )
    recall: RecallConfig = RecallConfig()


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Rows ready to be read.

    Attributes:
      folder: where they are.
      meta: what ``meta.json`` says: ``inputs`` (all that determines the rows, the corpus's ``digest`` among it) and the
        counts of each set.
      tokenizer: what made the ids.
      train: text and recall rows.
      validation: text rows only.
      recall: the recall set, with ``distance``; None if the config leaves it out.
    """

    folder: Path
    meta: dict[str, Any]
    tokenizer: Tokenizer
    train: Rows
    validation: Rows
    recall: Rows | None


def prepare(config: DataConfig, seq_len: int, cache_dir: str | Path, *, tokenizer: Tokenizer | None = None) -> Prepared:
    """The rows of a config, built below ``cache_dir`` if they are not there.

    Args:
      config: what to read.
      seq_len: tokens per row, at least 2 (at least 32 with recall rows).
      cache_dir: folder of prepared folders; the name of each holds a hash of all that determines its content.
      tokenizer: in the place of the config's.

    Raises:
      UserError: no text, files that cannot be read or written, a prepared folder that is broken, a tokenizer that
        cannot be had.
      ValueError: ``seq_len`` below 2.
    """
    corpus = survey(config.source, config.max_bytes)
    held_out = validation_groups(corpus.groups, config.validation_fraction)
    tokenizer = tokenizer or _tokenizer(config, corpus, held_out, Path(cache_dir))
    inputs = {
        "version": VERSION,
        "digest": corpus.digest,
        "seq_len": seq_len,
        **config.model_dump(mode="json"),
        "tokenizer": tokenizer.about(),
    }
    key = _hash(inputs)[:12]
    folder = Path(cache_dir) / f"{config.source.type_name}-{seq_len}-{key}"
    if not folder.exists():
        with storage.building(folder) as temporary:
            _build(temporary, config, inputs, held_out, tokenizer)
    meta = storage.read_meta(folder)
    if meta.get("inputs") != inputs:
        raise UserError(f"data: {folder} holds other data than its name says; delete it to build it again")
    rows = {name: Rows(folder / name, tokenizer.vocab_size) for name in meta["sets"]}
    return Prepared(folder, meta, tokenizer, rows["train"], rows["validation"], rows.get("recall"))


def _tokenizer(config: DataConfig, corpus: Corpus, held_out: frozenset[str], cache_dir: Path) -> Tokenizer:
    if config.tokenizer is None:
        return ByteTokenizer()

    def training() -> Iterator[bytes]:
        for document in read_documents(config.source, config.max_bytes):
            if document.group not in held_out:
                yield document.content

    return config.tokenizer.make(training, _hash([corpus.digest, sorted(held_out)]), cache_dir)


def _hash(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _build(
    folder: Path, config: DataConfig, inputs: dict[str, Any], held_out: frozenset[str], tokenizer: Tokenizer
) -> None:
    arrow = folder / "arrow"
    table = as_dataset(config.source, config.max_bytes, digest=inputs["digest"], cache_dir=arrow)
    groups, sizes = table["group"][:], np.asarray(table["size"][:], np.int64)
    validation = np.asarray([group in held_out for group in groups], bool)
    recall = config.recall
    alphabet = alphabet_of(tokenizer) if recall.fraction or recall.eval_rows else BYTES
    sets = {}
    with _progress(int(sizes.sum())) as advance:
        for name, members in (("train", np.flatnonzero(~validation)), ("validation", np.flatnonzero(validation))):
            documents = (table[int(i)]["content"] for i in members)
            fraction = recall.fraction if name == "train" else 0.0
            sets[name] = _write_text(
                folder / name,
                documents,
                inputs["seq_len"],
                tokenizer,
                recall.replace(fraction=fraction),
                alphabet,
                advance,
            )
    if recall.eval_rows:
        sets["recall"] = _write_recall(folder / "recall", recall, inputs["seq_len"], tokenizer.vocab_size, alphabet)
    del table
    shutil.rmtree(arrow)
    storage.write_meta(folder, {"inputs": inputs, "sets": sets})


def _write_text(
    folder: Path,
    documents: Iterator[bytes],
    seq_len: int,
    tokenizer: Tokenizer,
    recall: RecallConfig,
    alphabet: Alphabet,
    advance: Callable[[int], None],
) -> dict[str, int]:
    encoded = encode_documents(documents, tokenizer, folder.with_suffix(".ids"), advance)
    layout = plan(encoded.lengths, seq_len)
    recall_rows = round(layout.rows * recall.fraction / (1 - recall.fraction))
    arrays = _create(folder, layout.rows + recall_rows, seq_len, tokenizer.vocab_size)
    for number, ids in enumerate(encoded):
        place(arrays, layout, number, ids)
    encoded.path.unlink()
    for index in range(recall_rows):
        row = recall_row((recall.seed, _TRAIN), index, seq_len, recall.symbols, alphabet)
        for name, array in arrays.items():
            array[layout.rows + index] = row[name]
    tokens = int(encoded.lengths.sum())
    return {
        "documents": len(encoded.lengths),
        "bytes": encoded.bytes,
        "tokens": tokens,
        "text_rows": layout.rows,
        "recall_rows": recall_rows,
        "padding": layout.rows * seq_len - tokens,
        "targets": sum(int(block.sum()) for block in np.array_split(arrays["loss_mask"], 64)),
    }


def _write_recall(
    folder: Path, config: RecallConfig, seq_len: int, vocab_size: int, alphabet: Alphabet
) -> dict[str, int]:
    arrays = _create(folder, config.eval_rows, seq_len, vocab_size)
    arrays["distance"] = storage.create(folder / "distance.npy", (config.eval_rows, seq_len), np.int32)
    for index in range(config.eval_rows):
        row = recall_row((config.seed, _EVAL), index, seq_len, config.symbols, alphabet)
        for name, array in arrays.items():
            array[index] = row[name]
    return {"rows": config.eval_rows, "targets": int(arrays["loss_mask"].sum())}


def _create(folder: Path, rows: int, seq_len: int, vocab_size: int) -> dict[str, np.memmap]:
    segments = np.uint16 if seq_len < 2**16 else np.int32
    dtypes = {"tokens": id_dtype(vocab_size), "segment_ids": segments, "loss_mask": np.uint8}
    return {name: storage.create(folder / f"{name}.npy", (rows, seq_len), dtype) for name, dtype in dtypes.items()}


@contextlib.contextmanager
def _progress(total: int) -> Generator[Callable[[int], None]]:
    """A bar over bytes of text, on standard error if that is a terminal."""
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("packing text", total=total)
        yield lambda count: bar.advance(task, count)
