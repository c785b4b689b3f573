"""Files and folders that are either whole or absent."""

import errno
import os
from pathlib import Path

import pytest

from milora.errors import MiloraError
from milora.models.atomic import check_free, replacing, write_bytes, write_text


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_files_are_written_and_replaced(tmp_path: Path):
    write_text(tmp_path / "new" / "a.txt", "ü\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "ü\n".encode()
    write_bytes(tmp_path / "new" / "a.txt", b"2")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"2"
    assert names(tmp_path / "new") == {"a.txt"}


def test_folders_are_replaced_whole(tmp_path: Path):
    for content in ("1", "2"):
        with replacing(tmp_path / "adapter") as folder:
            folder.mkdir()
            (folder / f"only{content}").write_text(content)
    assert names(tmp_path / "adapter") == {"only2"}
    assert names(tmp_path) == {"adapter"}


def made(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_what_may_be_replaced(tmp_path: Path):
    adapter = made(tmp_path / "adapter", "adapter_config.json", "adapter_model.safetensors")
    model, other = made(tmp_path / "model", "config.json", "model.safetensors"), made(tmp_path / "other", "mine.txt")
    run = made(tmp_path / "run", "recipe.yaml", "adapter_config.json", "adapter/adapter_config.json")
    base = made(tmp_path / "both", "config.json", "base/config.json") / "base"
    (tmp_path / "empty").mkdir()
    for free in (tmp_path / "new", tmp_path / "empty"):
        check_free(free, False, adapter)
    for target in (adapter, model):
        check_free(target, True, run, "HuggingFaceTB/a-name", None)
        with pytest.raises(MiloraError, match="exists, allowed a new one, or --overwrite"):
            check_free(target, False)
        with pytest.raises(MiloraError, match="which is read; --overwrite would delete it"):
            check_free(target, True, run, target)
    with pytest.raises(MiloraError, match=r"both holds .*base, which is read"):
        check_free(base.parent, True, adapter, base)
    with pytest.raises(MiloraError, match="is not only an adapter or a model: it holds adapter; allowed another"):
        check_free(run, True)
    with pytest.raises(MiloraError, match=r"it has neither adapter_config\.json nor config\.json"):
        check_free(other, True)
    with pytest.raises(MiloraError, match="is a file, allowed a folder"):
        check_free(other / "mine.txt", True)
    check_free(other / "mine.txt", True, file=True)
    with pytest.raises(MiloraError, match="is a folder, allowed a file"):
        check_free(adapter, True, file=True)


@pytest.mark.parametrize("old", ["file", "folder", None])
def test_an_error_leaves_what_stood_there(tmp_path: Path, old: str | None):
    target = tmp_path / "target"
    if old == "folder":
        target.mkdir()
        (target / "inside").write_text("old")
    elif old == "file":
        target.write_text("old")
    with pytest.raises(RuntimeError, match="killed"), replacing(target) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("new")
        raise RuntimeError("killed")
    assert names(tmp_path) == ({"target"} if old else set())
    if old:
        assert (target / "inside" if old == "folder" else target).read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_and_the_old_file_survives(tmp_path: Path, error: Exception):
    write_text(tmp_path / "w", "old")
    with pytest.raises(MiloraError, match="no space left"), replacing(tmp_path / "w") as temporary:
        temporary.write_text("ne")
        raise error
    assert (tmp_path / "w").read_text() == "old"
    assert names(tmp_path) == {"w"}


def test_a_folder_that_cannot_take_its_place_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "target"
    target.mkdir()
    (target / "inside").write_text("old")
    rename, calls = os.rename, []

    def fail_once(source: Path, destination: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(OSError, match="broken"), replacing(target) as temporary:
        temporary.mkdir()
    assert len(calls) == 3
    assert (target / "inside").read_text() == "old"
