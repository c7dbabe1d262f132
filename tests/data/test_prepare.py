import os
import socket
from pathlib import Path

import numpy as np
import pytest

from effarch.config import UserError
from effarch.data import (
    BytePairs,
    DataConfig,
    Prepared,
    PythonStdlib,
    RecallConfig,
    TextFiles,
    TokenizerFile,
    prepare,
    storage,
)
from effarch.data.alphabet import alphabet_of
from effarch.data.corpus import survey, validation_groups
from effarch.data.recall import recall_rows

SEQ_LEN = 64


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "corpus").mkdir()
    for n in range(30):
        content = (
            f"file {n}\n".encode() + rng.integers(0, 256, size=int(rng.integers(1, 400)), dtype=np.uint8).tobytes()
        )
        (tmp_path / "corpus" / f"{n}.txt").write_bytes(content)
    return tmp_path / "corpus"


@pytest.fixture
def config(corpus: Path) -> DataConfig:
    source = TextFiles(files=(str(corpus / "*.txt"),))
    return DataConfig(source=source, recall=RecallConfig(fraction=0.25, eval_rows=4, symbols=30))


@pytest.fixture
def prepared(config: DataConfig, tmp_path: Path) -> Prepared:
    return prepare(config, SEQ_LEN, tmp_path / "cache")


def pieces(rows, count: int) -> list[bytes]:
    """The tokens of every segment of the first rows."""
    batch = rows.take(np.arange(count))
    found = []
    for tokens, ids in zip(batch["tokens"], batch["segment_ids"], strict=True):
        found += [tokens[ids == segment].tobytes() for segment in range(1, ids.max() + 1)]
    return found


def test_the_rows_hold_every_document_of_their_set(prepared: Prepared, corpus: Path, config: DataConfig):
    held_out = validation_groups(survey(config.source).groups, config.validation_fraction)
    assert 0 < len(held_out) < 30
    for name, rows in (("train", prepared.train), ("validation", prepared.validation)):
        expected, size = [], 0
        for path in corpus.iterdir():
            if (path.name in held_out) == (name == "validation"):
                tokens = [256, *path.read_bytes(), 257]
                expected += [
                    np.asarray(tokens[i : i + SEQ_LEN], np.int32).tobytes() for i in range(0, len(tokens), SEQ_LEN)
                ]
                size += path.stat().st_size
        meta = prepared.meta["sets"][name]
        assert sorted(pieces(rows, meta["text_rows"])) == sorted(expected)
        assert meta["bytes"] == size and meta["text_rows"] + meta["recall_rows"] == len(rows)
        batch = rows.take(np.arange(len(rows)))
        assert meta["targets"] == batch["loss_mask"].sum()
        assert meta["padding"] == (batch["segment_ids"][: meta["text_rows"]] == 0).sum()


def test_recall_rows_are_the_asked_share_and_not_those_of_the_evaluation(prepared: Prepared):
    meta = prepared.meta["sets"]["train"]
    assert meta["recall_rows"] == round(len(prepared.train) / 4) > 0
    assert prepared.meta["sets"]["validation"]["recall_rows"] == 0
    batch = prepared.train.take(np.arange(meta["text_rows"], len(prepared.train)))
    expected = recall_rows((0, 0), 0, meta["recall_rows"], SEQ_LEN, 30)
    for name, array in batch.items():
        np.testing.assert_array_equal(array, expected[name])
    recall = prepared.recall.take(np.arange(4))
    for name, array in recall_rows((0, 1), 0, 4, SEQ_LEN, 30).items():
        np.testing.assert_array_equal(recall[name], array)
    assert recall["distance"].dtype == np.int32 and (recall["distance"] > 0).any()


def test_a_finished_folder_is_used_again_and_another_config_gets_another(prepared: Prepared, config: DataConfig):
    cache = prepared.folder.parent
    built = (prepared.folder / "meta.json").stat().st_mtime_ns
    assert prepare(config, SEQ_LEN, cache).meta == prepared.meta
    assert (prepared.folder / "meta.json").stat().st_mtime_ns == built
    others = [
        prepare(config, 2 * SEQ_LEN, cache),
        prepare(config.replace(max_bytes=2000), SEQ_LEN, cache),
        prepare(config.replace(validation_fraction=0.3), SEQ_LEN, cache),
        prepare(config.replace(recall=RecallConfig(fraction=0, eval_rows=0)), SEQ_LEN, cache),
    ]
    assert len({prepared.folder, *(other.folder for other in others)}) == 5
    assert others[-1].recall is None and others[-1].meta["sets"]["train"]["recall_rows"] == 0
    assert others[1].meta["sets"]["train"]["bytes"] + others[1].meta["sets"]["validation"]["bytes"] == 2000
    assert {path.name for path in cache.iterdir()} == {prepared.folder.name, *(other.folder.name for other in others)}


def test_two_builds_are_identical_and_see_a_changed_text(prepared: Prepared, config: DataConfig, corpus: Path):
    again = prepare(config, SEQ_LEN, prepared.folder.parent.with_name("elsewhere"))
    assert again.meta == prepared.meta
    assert again.folder.name == prepared.folder.name
    (corpus / "0.txt").write_text("another text")
    changed = prepare(config, SEQ_LEN, prepared.folder.parent)
    assert changed.folder != prepared.folder
    assert changed.meta["inputs"]["digest"] != prepared.meta["inputs"]["digest"]


def test_any_tokenizer_packs_and_is_not_trained_on_what_is_held_out(config: DataConfig, corpus: Path, tmp_path: Path):
    pytest.importorskip("tokenizers", reason="needs the extra hub")
    held_out = validation_groups({path.name: 200 for path in corpus.iterdir()}, config.validation_fraction)
    for path in corpus.iterdir():
        text = "zqzqzqzq " * 40 if path.name in held_out else f"the state of file {path.stem}\n" * 10
        path.write_text(text[:200])
    trained = prepare(config.replace(tokenizer=BytePairs(vocab_size=300)), SEQ_LEN, tmp_path / "cache")
    tokenizer = trained.tokenizer
    assert not any("zq" in token for token in tokenizer.token_map().values())
    assert any("state" in token for token in tokenizer.token_map().values())
    assert trained.meta["inputs"]["tokenizer"] == tokenizer.about()

    for name, rows in (("train", trained.train), ("validation", trained.validation)):
        meta = trained.meta["sets"][name]
        texts = [path.read_bytes() for path in corpus.iterdir() if (path.name in held_out) == (name == "validation")]
        expected = [tokenizer.encode(text, bos=True, eos=True) for text in texts]
        cut = [ids[i : i + SEQ_LEN].tobytes() for ids in expected for i in range(0, len(ids), SEQ_LEN)]
        assert sorted(pieces(rows, meta["text_rows"])) == sorted(cut) and len(cut) >= len(texts) > 0
        tokens = rows.take(np.arange(meta["text_rows"]))["tokens"]
        assert tokenizer.byte_counts(tokens).sum() == meta["bytes"]
    recall = recall_rows((0, 1), 0, 4, SEQ_LEN, 30, alphabet_of(tokenizer))
    np.testing.assert_array_equal(trained.recall.take(np.arange(4))["tokens"], recall["tokens"])

    # The file of the trained one is the trained one: the rows are there already.
    (folder,) = (tmp_path / "cache").glob("bpe-300-*")
    again = prepare(config.replace(tokenizer=TokenizerFile(path=str(folder))), SEQ_LEN, tmp_path / "cache")
    assert again.folder == trained.folder
    assert prepare(config, SEQ_LEN, tmp_path / "cache", tokenizer=tokenizer).folder == trained.folder


def test_truncated_changed_or_missing_files_are_one_clear_line(prepared: Prepared, config: DataConfig):
    path = prepared.folder / "train" / "tokens.npy"
    good = path.read_bytes()

    def refused(pattern: str) -> None:
        with pytest.raises(UserError, match=pattern) as caught:
            prepare(config, SEQ_LEN, prepared.folder.parent)
        assert len(caught.value.lines) == 1 and "\n" not in str(caught.value) and "delete" in str(caught.value)

    path.write_bytes(good[:-1])
    refused(rf"train/tokens.npy is truncated: expected {len(good)} bytes, got {len(good) - 1}")
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    refused("train/tokens.npy is corrupt")
    path.unlink()
    refused("train/tokens.npy is truncated")
    path.write_bytes(good)
    assert prepare(config, SEQ_LEN, prepared.folder.parent).meta == prepared.meta
    (prepared.folder / "meta.json").write_text('{"inputs"')
    refused("meta.json is missing or corrupt")
    (prepared.folder / "meta.json").unlink()
    refused("meta.json is missing or corrupt")


def test_a_failed_build_leaves_nothing(config: DataConfig, tmp_path: Path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_meta", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, SEQ_LEN, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_killed_build_left_is_ignored_and_removed(config: DataConfig, tmp_path: Path):
    folder = prepare(config, SEQ_LEN, tmp_path / "first").folder
    host, dead = socket.gethostname(), 2**22 + 1  # above the largest process id
    cache = tmp_path / "second"
    for name in (f"{folder.name}.tmp-{host}-{dead}", f"{folder.name}.tmp-{host}-{os.getppid()}"):
        (cache / name).mkdir(parents=True)
        (cache / name / "meta.json").write_text("{}")
    assert prepare(config, SEQ_LEN, cache).folder == cache / folder.name
    assert {path.name for path in cache.iterdir()} == {folder.name, f"{folder.name}.tmp-{host}-{os.getppid()}"}


def test_an_unwritable_place_is_one_clear_line(config: DataConfig, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data: cannot write .*file") as caught:
        prepare(config, SEQ_LEN, tmp_path / "file" / "cache")
    assert len(caught.value.lines) == 1


def test_an_empty_dataset_is_one_clear_line_and_leaves_nothing(corpus: Path, tmp_path: Path):
    (corpus / "empty").write_text("")
    with pytest.raises(UserError, match="the dataset is empty"):
        prepare(DataConfig(source=TextFiles(files=(str(corpus / "empty"),))), SEQ_LEN, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_standard_library_is_packed(tmp_path: Path):
    prepared = prepare(DataConfig(max_bytes=300_000), 256, tmp_path)
    assert prepared.meta["inputs"]["source"] == PythonStdlib().model_dump(mode="json") == {"type": "python_stdlib"}
    train, validation = prepared.meta["sets"]["train"], prepared.meta["sets"]["validation"]
    assert train["bytes"] + validation["bytes"] == 300_000 and validation["bytes"] > 5_000
    assert train["padding"] < 0.02 * train["tokens"]
    row = prepared.train.take(np.asarray([0]))
    assert (
        "import" in prepared.tokenizer.decode(prepared.train.take(np.arange(50))["tokens"])
        and row["tokens"][0, 0] == 256
    )
