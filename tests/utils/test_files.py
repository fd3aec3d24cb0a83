"""Files are written completely or not at all."""

import hashlib

import pytest
from safetensors import SafetensorError

from utils.files import fresh_folder, replace, sha256, write_text, writing_to


def test_write_text_replaces_a_file_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("old and longer")
    write_text(path, "new: äöü")
    assert path.read_text(encoding="utf-8") == "new: äöü"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")  # half of a surrogate pair, which UTF-8 cannot encode
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_that_cannot_be_written_names_its_file(tmp_path):
    path = tmp_path / "missing" / "text.txt"
    with pytest.raises(OSError, match=r"cannot write .*missing/text.txt: No such file or directory"):
        write_text(path, "text")


def test_replace_renames_a_file_over_another_and_a_folder_with_all_of_its_files(tmp_path):
    (tmp_path / "new.txt").write_text("new")
    (tmp_path / "old.txt").write_text("old")
    replace(tmp_path / "new.txt", tmp_path / "old.txt")
    assert (tmp_path / "old.txt").read_text() == "new"
    assert not (tmp_path / "new.txt").exists()

    (tmp_path / "source" / "inner").mkdir(parents=True)
    (tmp_path / "source" / "inner" / "file.txt").write_text("content")
    replace(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target" / "inner" / "file.txt").read_text() == "content"
    assert not (tmp_path / "source").exists()


@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("no space"), SafetensorError("no space")])
def test_a_failure_while_writing_to_a_folder_removes_it_and_names_it(tmp_path, error):
    folder = fresh_folder(tmp_path / "folder")
    with pytest.raises(OSError, match=r"cannot write .*folder: no space") as raised, writing_to(folder):
        (folder / "part").write_text("a part")
        raise error
    assert raised.value.__cause__ is error
    assert not folder.exists()


def test_other_errors_pass_through_and_success_keeps_the_folder(tmp_path):
    folder = fresh_folder(tmp_path / "folder")
    with pytest.raises(KeyError), writing_to(folder):
        raise KeyError("a bug")
    with writing_to(folder):
        (folder / "file").write_text("content")
    assert (folder / "file").read_text() == "content"


def test_a_fresh_folder_is_empty(tmp_path):
    folder = fresh_folder(tmp_path / "outer" / "inner")
    (folder / "left").write_text("by an earlier run")
    assert list(fresh_folder(folder).iterdir()) == []


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 1000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 1000).hexdigest()
