import numpy as np
import pytest

from effarch.data import ByteTokenizer

TOKENIZER = ByteTokenizer()


def test_text_and_any_bytes_come_back():
    text = "déf f(): return '∑' \r\n\t\0"
    ids = TOKENIZER.encode(text, bos=True, eos=True)
    assert ids.dtype == np.int32 and ids[0] == 256 and ids[-1] == 257
    assert ids[1:-1].tolist() == list(text.encode())
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.encode(bytes(range(256))).tolist() == list(range(256))
    assert TOKENIZER.encode("").shape == (0,)


def test_broken_utf8_is_shown_not_raised():
    assert TOKENIZER.decode([0xE2, 0x88, 65]) == "�A"
    assert TOKENIZER.encode("\udce2").tolist() == [0xE2]  # how a command line spells a stray byte


@pytest.mark.parametrize("bad", [258, -1])
def test_an_id_outside_the_vocabulary_is_refused(bad):
    with pytest.raises(ValueError, match=rf"ids: expected 0 <= id < 258, got {bad}"):
        TOKENIZER.decode([65, bad])
