from pathlib import Path

from effarch.data import storage


def test_the_fingerprint_of_a_large_file_sees_both_ends(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(storage, "_BLOCK", 8)
    monkeypatch.setattr(storage, "_BLOCKS", 4)
    path = tmp_path / "large"
    path.write_bytes(bytes(100))
    before = storage.fingerprint(path)
    assert before == storage.fingerprint(path) and before["bytes"] == 100
    for place in (0, 7, 35, 92, 99):
        content = bytearray(100)
        content[place] = 1
        path.write_bytes(content)
        assert storage.fingerprint(path)["sha256"] != before["sha256"]


def test_another_process_that_finishes_first_wins(tmp_path: Path):
    folder = tmp_path / "rows"
    with storage.building(folder) as temporary:
        (temporary / "meta.json").write_text("mine")
        folder.mkdir()
        (folder / "meta.json").write_text("theirs")
    assert (folder / "meta.json").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
