import sysconfig
from pathlib import Path

import pytest

from effarch.config import UserError
from effarch.data import PythonStdlib, TextFiles
from effarch.data.corpus import Digest, read_documents, survey, validation_groups


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {"b.txt": "second", "a.txt": "first", "sub/c.txt": "third", "empty.txt": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_files_are_read_in_the_order_of_their_names(folder: Path):
    source = TextFiles(files=(str(folder / "**/*.txt"), str(folder / "a.txt")))
    documents = list(read_documents(source))
    assert [(d.path, d.content) for d in documents] == [
        ("a.txt", b"first"),
        ("b.txt", b"second"),
        ("sub/c.txt", b"third"),
    ]


def test_a_separator_cuts_documents_and_equal_ones_stay_together(folder: Path):
    (folder / "a.txt").write_text("one<end>two<end>one<end>\n")
    documents = list(read_documents(TextFiles(files=(str(folder / "a.txt"),), separator="<end>")))
    assert [d.content for d in documents] == [b"one", b"two", b"one"]
    assert documents[0].group == documents[2].group != documents[1].group
    assert len({d.path for d in documents}) == 3


def test_the_digest_sees_names_contents_and_their_borders(folder: Path):
    source = TextFiles(files=(str(folder / "*.txt"),))
    before = survey(source)
    assert before == survey(source) and before.documents == 2
    (folder / "a.txt").write_text("First")
    assert survey(source).digest != before.digest
    (folder / "a.txt").write_text("first")
    (folder / "a.txt").rename(folder / "aa.txt")
    assert survey(source).digest != before.digest

    def digest(*documents):
        found = Digest()
        for path, content in documents:
            found.add(path, content)
        return found.hexdigest()

    assert digest(("a", b"bc")) != digest(("ab", b"c"))
    assert digest(("a", b"1 1 bc")) != digest(("a", b""), ("b", b"c"))


def test_max_bytes_takes_exactly_so_many_from_a_sample(folder: Path):
    source = TextFiles(files=(str(folder / "**/*.txt"),))
    for limit in (1, 7, 12):
        assert sum(len(d.content) for d in read_documents(source, limit)) == limit
    assert list(read_documents(source, 10**6)) == list(read_documents(source))


def test_what_is_empty_missing_or_unreadable_is_one_clear_line(folder: Path):
    with pytest.raises(UserError, match="the dataset is empty") as caught:
        survey(TextFiles(files=(str(folder / "empty.txt"),)))
    assert len(caught.value.lines) == 1
    with pytest.raises(UserError, match=r"data.source.files: no file matches '.*nothing\*'"):
        survey(TextFiles(files=(str(folder / "nothing*"),)))
    with pytest.raises(UserError, match="one document cannot be split"):
        validation_groups({"a.txt": 5}, 0.1)


def test_validation_groups_depend_on_names_and_sizes_only():
    groups = {f"module{n}": 100 + n for n in range(200)}
    chosen = validation_groups(groups, 0.1)
    assert chosen == validation_groups(dict(reversed(groups.items())), 0.1)
    share = sum(groups[name] for name in chosen) / sum(groups.values())
    assert 0.09 < share <= 0.1
    assert validation_groups({"large": 100, "small": 99}, 0.1) == {"small"}  # never empty


def test_the_standard_library_is_split_by_top_level_package():
    source = PythonStdlib()
    paths = source.paths()
    assert "json/decoder.py" in paths and "argparse.py" in paths
    forbidden = {"test", "tests", "encodings", "pydoc_data", "site-packages", "__pycache__", "idle_test"}
    assert not any(forbidden & set(path.split("/")) for path in paths)
    assert all(path.is_file() and path.is_relative_to(sysconfig.get_paths()["stdlib"]) for path in paths.values())

    corpus = survey(source, max_bytes=1_000_000)
    held_out = validation_groups(corpus.groups, 0.1)
    assert sum(corpus.groups.values()) == 1_000_000 and len(corpus.groups) > 20
    assert 0.05 < sum(corpus.groups[name] for name in held_out) / 1_000_000 <= 0.1
    for document in read_documents(source, max_bytes=1_000_000):
        assert document.group == document.path.split("/")[0].removesuffix(".py")
        assert paths[document.path].read_bytes().startswith(document.content)
