"""milora cache, and --no-store."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from milora.cli import app
from milora.cli.app import main
from milora.decompositions import Part, default_store
from milora.linalg import VERSION


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a store with three entries, one of them of another version."""
    monkeypatch.setenv("MILORA_CACHE", str(tmp_path))
    monkeypatch.setenv("MILORA_CACHE_SIZE", "3MB")
    store = default_store()
    W = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    for name, part in (("a.q_proj", Part.bottom(4)), ("b.q_proj", Part.top(2)), ("c.q_proj", Part.full())):
        store.compute(W + ord(name[0]), part, name=name)
    old = next((tmp_path / "decompositions").rglob("full.*"))
    old.rename(old.with_name(old.name.replace(f".v{VERSION}.", f".v{VERSION + 1}.")))
    return tmp_path / "decompositions"


def call(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 0) -> Any:
    capsys.readouterr()
    assert main(["cache", *(str(a) for a in arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_ls_has_a_row_an_entry(folder, capsys):
    listed = {e["weight"]: e for e in call(capsys, "ls")}
    assert listed.keys() == {"a.q_proj", "b.q_proj", "c.q_proj"}
    first = listed["a.q_proj"]
    assert (first["shape"], first["part"], first["dtype"], first["version"]) == (
        [12, 8],
        "bottom-4",
        "float32",
        VERSION,
    )
    assert first["algorithm"] and first["worst"] < 1e-5 and first["bytes"] == Path(first["path"]).stat().st_size
    assert main(["cache", "ls"]) == 0
    printed = capsys.readouterr().out
    assert "12 x 8" in printed and "top-2" in printed
    Path(first["path"]).write_bytes(b"broken")
    assert [e["weight"] for e in call(capsys, "ls") if e["path"] == first["path"]] == ["(cannot be read)"]
    assert main(["cache", "ls"]) == 0


def test_info_counts(folder, capsys):
    size = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    assert call(capsys, "info") == {
        "folder": str(folder),
        "entries": 3,
        "bytes": size,
        "limit": 3_000_000,
        "version": VERSION,
        "of_another_version": 1,
    }


def test_clear_asks_and_deletes(folder, capsys):
    assert main(["cache", "clear"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert call(capsys, "info")["entries"] == 3
    old = next(folder.rglob("top-2.*"))
    os.utime(old, (old.stat().st_mtime - 3 * 86400,) * 2)
    assert call(capsys, "clear", "--older-than", 2, "--yes")["removed"] == 1
    assert call(capsys, "info")["entries"] == 2
    assert call(capsys, "clear", "--yes")["removed"] == 2
    assert not [p for p in folder.rglob("*") if p.is_file()]
    assert call(capsys, "ls") == []


def test_verify_names_what_is_corrupt(folder, capsys):
    # An entry under another's name is corrupt too: the one of the fixture that was renamed.
    next(folder.rglob("full.*")).unlink()
    assert call(capsys, "verify") == {"read": 2, "corrupt": []}
    bad = next(folder.rglob("bottom-4.*"))
    content = bytearray(bad.read_bytes())
    content[-5] ^= 4
    bad.write_bytes(content)
    found = call(capsys, "verify", code=1)
    assert [(e["path"], e["removed"]) for e in found["corrupt"]] == [(str(bad), False)]
    assert main(["cache", "verify"]) == 1
    assert str(bad) in capsys.readouterr().out
    assert call(capsys, "verify", "--remove", code=1)["corrupt"][0]["removed"]
    assert call(capsys, "verify") == {"read": 1, "corrupt": []}


def test_an_empty_store_is_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MILORA_CACHE", str(tmp_path / "none"))
    assert call(capsys, "ls") == []
    assert call(capsys, "info")["entries"] == 0
    assert call(capsys, "clear", "--yes")["removed"] == 0
    assert call(capsys, "verify") == {"read": 0, "corrupt": []}
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("arguments", [["--no-store", "cache", "ls"], ["cache", "ls", "--no-store"]], ids=str)
def test_no_store_switches_it_off_for_one_call(monkeypatch, arguments):
    seen: list[object] = []
    monkeypatch.setattr(app, "_run", lambda *_: seen.append(default_store()))
    monkeypatch.delenv("MILORA_STORE", raising=False)
    assert main(arguments) == 0
    assert seen == [None]
    assert default_store() is not None
    monkeypatch.setenv("MILORA_STORE", "on")
    assert main(arguments) == 0
    assert seen == [None, None] and os.environ["MILORA_STORE"] == "on"
