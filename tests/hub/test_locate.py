"""A name of the hub without a network: one line that says what to do."""

import pytest

from effarch.config import UserError
from effarch.hub.locate import locate


def test_a_folder_is_itself(tmp_path):
    assert locate(str(tmp_path)) == tmp_path


def test_a_name_of_the_hub_offline_says_what_to_do(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra `hub`")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        locate("nobody/nothing")
    (line,) = error.value.lines
    assert "hf download nobody/nothing --local-dir DIR" in line


@pytest.mark.parametrize("name", ["no such folder", "a/b/c", "../x/y"])
def test_what_is_neither_is_refused(name):
    with pytest.raises(UserError, match="expected a folder, or a name"):
        locate(name)
