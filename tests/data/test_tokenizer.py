"""Tokenizers from files and trained ones: what is encoded comes back, and its bytes are counted."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from effarch.config import UserError
from effarch.data import BytePairs, ByteTokenizer, FileTokenizer, TokenizerFile, load_tokenizer
from effarch.data.bpe import train
from tests.data import tokenizers as made

pytest.importorskip("tokenizers", reason="needs the extra hub")

TEXTS = ("the cat sat", "  two\n\tspaces ", "déf ∑ 🙂", "</s> <s> <eos><|endoftext|>", "a", " a", "", "\r\n\0")
DOCUMENTS = [b"def f(state):\n    return state\n" * 3, "dé f".encode(), b"the state of the state\n" * 4]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> FileTokenizer:
    tokenizer = load_tokenizer(made.sentencepiece(tmp_path_factory.mktemp("llama")))
    assert isinstance(tokenizer, FileTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def bpe() -> FileTokenizer:
    return train(iter(DOCUMENTS), 300)


@pytest.fixture(params=["llama", "bpe", "bytes"])
def tokenizer(request):
    return ByteTokenizer() if request.param == "bytes" else request.getfixturevalue(request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_and_each_of_its_bytes_is_counted_once(tokenizer, text: str):
    ids = tokenizer.encode(text, bos=True, eos=True)
    assert ids.dtype == np.int32 and ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
    inner = ids[1:-1]
    assert not np.isin(inner, [tokenizer.bos_id, tokenizer.eos_id]).any()  # text never becomes a special token
    assert inner.tolist() == tokenizer.encode(text).tolist() == tokenizer.encode(text.encode()).tolist()
    assert tokenizer.decode(ids) == tokenizer.decode(inner) == text
    assert (ids >= 0).all() and (ids < tokenizer.vocab_size).all()
    rows = np.stack([ids, ids])
    assert tokenizer.byte_counts(rows).sum(axis=1).tolist() == [len(text.encode())] * 2
    assert [x.tolist() for x in tokenizer.encode_batch([text, "b"], bos=True)][0] == ids[:-1].tolist()


def test_words_are_tokens_and_nothing_is_cut(llama: FileTokenizer):
    tokens = llama.token_map()
    ids = llama.encode("the cat sat on the mat " * 9)
    assert [tokens[i] for i in ids[:3].tolist()] == ["▁the", "▁cat", "▁sat"]
    assert len(ids) > 8 and llama.decode(ids) == "the cat sat on the mat " * 9  # its file cuts at 8 tokens
    assert (llama.bos_id, llama.eos_id, llama.pad_id, llama.stop_tokens) == (1, 2, None, (2,))


@pytest.mark.parametrize("said", [True, False])
def test_an_encoders_marks_surround_its_texts(tmp_path, said):
    """BERT's folders name them, older ones only hold them; no language model misses what it does not use."""
    tokenizer = load_tokenizer(made.wordpiece(tmp_path / "bert", said=said))
    tokens = tokenizer.token_map()
    ids = tokenizer.encode("the cats [MASK] sat", bos=True, eos=True).tolist()
    assert [tokens[i] for i in ids[:3]] == ["[CLS]", "the", "cat"] and tokens[ids[-1]] == "[SEP]"
    assert (tokens[tokenizer.mask_id], tokens[tokenizer.pad_id]) == ("[MASK]", "[PAD]")
    assert tokenizer.mask_id not in ids and tokenizer.decode(ids[:4]) == "the cats"
    content, settings = (tmp_path / "bert" / "tokenizer.json").read_text(), {"mask_token": "<mask>"}
    assert FileTokenizer(content, settings).mask_id is None and ByteTokenizer().mask_id is None


def test_a_continuation_keeps_its_space(tokenizer):
    whole = "the cat ran"
    prompt = tokenizer.encode("the cat", bos=True).tolist()
    new = tokenizer.encode(whole, bos=True).tolist()[len(prompt) :]
    assert tokenizer.continuation(prompt, new) == " ran"


def test_bytes_that_are_no_utf8_become_replacement_characters(bpe: FileTokenizer):
    assert bpe.decode(bpe.encode(b"\xffa")) == "�a" == bpe.decode(bpe.encode("\udcffa"))
    assert bpe.decode([0, bpe.vocab_size + 7, *bpe.encode("a")]) == "a"  # rows of a model beyond the vocabulary
    with pytest.raises(ValueError, match="ids: expected 0 <= id, got -1"):
        bpe.decode([-1])


def test_training_is_deterministic_and_uses_merges(bpe: FileTokenizer):
    again = train(iter(DOCUMENTS[::-1]), 300)
    assert again.about() == bpe.about() and bpe.vocab_size <= 300
    assert len(bpe.encode(" state")) == 1 and len(bpe.encode("state of the state")) < 9
    assert (bpe.bos_id, bpe.eos_id) == (0, 1)


def test_a_trained_one_is_kept_and_another_text_gets_another(tmp_path: Path):
    config, calls = BytePairs(vocab_size=280), []

    def documents():
        calls.append(1)
        return iter(DOCUMENTS)

    first = config.make(documents, "one", tmp_path)
    assert config.make(documents, "one", tmp_path).about() == first.about() and len(calls) == 1
    config.make(documents, "two", tmp_path)
    config.replace(vocab_size=281).make(documents, "one", tmp_path)
    assert len(calls) == 3 == len(list(tmp_path.iterdir()))
    file = next(tmp_path.glob("bpe-280-*")) / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(UserError, match="tokenizer.json is truncated.*delete"):
        for identity in ("one", "two"):
            config.make(documents, identity, tmp_path)


def test_saved_ones_come_back_the_same(tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is type(tokenizer) and again.about() == tokenizer.about()
    assert (again.bos_id, again.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
    config = TokenizerFile(path=str(tmp_path))
    assert config.rows() == again.vocab_size
    assert config.make(lambda: iter(()), "", tmp_path).digest == tokenizer.digest


def test_the_byte_tokenizers_file_means_the_same_to_the_library(tmp_path: Path):
    ours = ByteTokenizer()
    ours.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    theirs = FileTokenizer((tmp_path / "tokenizer.json").read_text(), settings)
    for text in TEXTS:
        assert theirs.encode(text, bos=True, eos=True).tolist() == ours.encode(text, bos=True, eos=True).tolist()
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.digest == ours.digest and theirs.difference(ours) is None


def test_token_maps_are_compared(llama: FileTokenizer, tmp_path: Path):
    other = load_tokenizer(made.sentencepiece(tmp_path / "other", words=("the", "cow", "sat", "mat", "dog", "ran")))
    assert other.digest != llama.digest
    assert llama.difference(other) == "token 272: '▁t' against 'w'"
    more = load_tokenizer(made.sentencepiece(tmp_path / "more", words=(*made.WORDS, "that")))
    assert llama.difference(more) == f"token {llama.vocab_size}: none against '▁tha'"
    assert more.difference(llama) == f"token {llama.vocab_size}: '▁tha' against none"


def test_special_tokens_are_read_from_other_files_too(tmp_path: Path):
    folder = made.sentencepiece(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder).bos_id is None
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 0]}))
    assert (load_tokenizer(folder).bos_id, load_tokenizer(folder).eos_id) == (1, 2)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<unk>"}}))
    assert (load_tokenizer(folder).bos_id, load_tokenizer(folder).eos_id) == (1, 0)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": None}))  # says that there is none
    tokenizer = load_tokenizer(folder)
    assert tokenizer.bos_id is None and tokenizer.encode("the", bos=True).tolist() == tokenizer.encode("the").tolist()


def test_what_cannot_be_read_is_one_clear_line(tmp_path: Path, monkeypatch):
    def refused(pattern: str) -> None:
        with pytest.raises(UserError, match=pattern) as caught:
            load_tokenizer(tmp_path)
        assert len(caught.value.lines) == 1 and "\n" not in str(caught.value)

    (tmp_path / "tokenizer.model").write_bytes(b"")
    refused(r"expected tokenizer.json, found none \(tokenizer.model: ")
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")
    refused("tokenizer.json: expected JSON")
    (tmp_path / "tokenizer.json").write_text("{}")
    refused("expected a tokenizer.json, got one that says")
    made.sentencepiece(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<bos>"}')
    refused("bos_token: expected a token of tokenizer.json, got '<bos>'")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    refused(r"data.tokenizer: expected the tokenizers library; pip install 'effarch\[hub\]'")
