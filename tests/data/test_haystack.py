"""Facts in text: what a row holds is what was planted, at its depth; the text is the data's own."""

import numpy as np
import pytest

from effarch.data.alphabet import BYTES
from effarch.data.bytes import BOS, ByteTokenizer
from effarch.data.haystack import haystack_rows
from effarch.data.long_rows import long_rows, reach, stream
from effarch.data.rows import Rows

TOKENIZER = ByteTokenizer()
TEXT = np.frombuffer(b"abcdefghij" * 40, np.uint8).astype(np.int32)
DEPTHS = (0.0, 0.5, 1.0)


class Words:
    """A tokenizer of another kind: two bytes a token, and no token to begin with."""

    def encode(self, text, *, bos=False, eos=False):
        raw = text.encode() if isinstance(text, str) else text
        return np.array(
            [1000 + raw[i] * 256 + (raw[i + 1 : i + 2] or b"\0")[0] for i in range(0, len(raw), 2)], np.int64
        )


def rows(task, **changes):
    return haystack_rows(task, TEXT, TOKENIZER, 128, DEPTHS, **{"trials": 3, "pairs": 4, **changes})


def test_a_needle_lies_at_its_depth_and_is_asked_for_at_the_end():
    made = rows("needle")
    assert {x.shape for x in made.values()} == {(9, 128)} and (made["segment_ids"] == 1).all()
    for n, (tokens, answer) in enumerate(zip(made["tokens"], made["answer"], strict=True)):
        assert tokens[0] == BOS
        text = bytes(tokens[1:].astype(np.uint8)).decode()
        question = text[text.rindex("\n") :]
        code = question.split()[-1]
        assert question.startswith("\nThe code of ") and code.isdigit() and len(code) == 4
        assert bytes(tokens[answer == 1].astype(np.uint8)).decode() == f" {code}" and answer.max() == 1
        fact, left = f"{question}.\n", len(text) - 2 * len(question) - 2
        assert text.index(fact) == round(DEPTHS[n // 3] * left)
        hay = text.replace(fact, "").removesuffix(question)
        assert hay in TEXT.astype(np.uint8).tobytes().decode()
    assert (made["loss_mask"] == (made["answer"] > 0)).all()
    # a trial is the same fact and text at every depth; trials differ
    assert (np.sort(made["tokens"].reshape(3, 3, -1), axis=-1) == np.sort(made["tokens"][None, :3], axis=-1)).all()
    assert len({row.tobytes() for row in made["tokens"]}) == 9


def test_pairs_are_asked_for_in_another_order():
    made = rows("mqar", trials=8)
    orders = set()
    for tokens, answer in zip(made["tokens"], made["answer"], strict=True):
        text = bytes(tokens[1:].astype(np.uint8)).decode()
        facts, asked = text[text.index("\n") + 1 :][:8], text[text.rindex("\n") + 1 :]
        pairs = {facts[i]: facts[i + 1] for i in range(0, 8, 2)}
        assert len(asked) == 8 and {asked[i]: asked[i + 1] for i in range(0, 8, 2)} == pairs and len(pairs) == 4
        for key, value in pairs.items():
            assert ord(value) in BYTES.values[BYTES.keys.tolist().index(ord(key))]
        assert answer[-8:].tolist() == [0, 1, 0, 2, 0, 3, 0, 4] and answer[:-8].max() == 0
        orders.add(facts == asked)
    assert False in orders


def test_any_tokenizer_will_do():
    made = haystack_rows("needle", np.arange(200), Words(), 64, (0.25,), trials=1)
    answer = made["tokens"][0][made["answer"][0] == 1]
    assert len(answer) == 3 and made["tokens"][0][-3:].tolist() == answer.tolist()
    starts = [i for i in range(62) if made["tokens"][0][i : i + 3].tolist() == answer.tolist()]
    assert len(starts) == 2 and made["tokens"][0][0] < 200, "no token begins the row but the text's own"


def test_what_does_not_fit():
    with pytest.raises(ValueError, match=r"length: expected at least the \d+ tokens of a needle, got 32"):
        haystack_rows("needle", TEXT, TOKENIZER, 32, DEPTHS, trials=9)
    with pytest.raises(ValueError, match="text: expected at least 512 tokens, got 400"):
        haystack_rows("mqar", TEXT, TOKENIZER, 512, DEPTHS, trials=1)
    with pytest.raises(ValueError, match="pairs: expected 1 to 10, got 11"):
        rows("mqar", pairs=11)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Rows:
    """Three rows of 6: 6 tokens of a document, 3 more of it and another of 2, one of 4."""
    folder = tmp_path_factory.mktemp("rows")
    arrays = {
        "tokens": [[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 0], [1, 3, 5, 7, 0, 0]],
        "segment_ids": [[1] * 6, [1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]],
        "loss_mask": [[0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0]],
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.asarray(array, np.uint8))
    return Rows(folder, 10)


def test_long_rows_are_the_text_end_to_end(prepared):
    ids, mask = stream(prepared, 100)
    assert ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 1, 3, 5, 7]
    assert np.flatnonzero(mask == 0).tolist() == [0, 6, 9, 11]
    assert stream(prepared, 8)[0].tolist() == ids[:8].tolist()
    made = long_rows(prepared, 7, 20)
    assert made["tokens"].tolist() == [ids[:7].tolist(), ids[7:14].tolist()] and (made["segment_ids"] == 1).all()
    assert made["loss_mask"].tolist() == [[0, 1, 1, 1, 1, 1, 0], [0, 1, 0, 1, 0, 1, 1]]
    assert long_rows(prepared, 15, 1)["tokens"].shape == (1, 15)
    assert reach(prepared, (4, 8, 50, 90)) == (4, 8, 15) and reach(prepared, (15, 4)) == (4, 15)
    with pytest.raises(ValueError, match="length: expected at most the 15 tokens of the text, got 16"):
        long_rows(prepared, 16, 16)
