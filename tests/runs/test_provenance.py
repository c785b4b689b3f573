"""Where a run comes from."""

import json
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

import milora
from milora.runs import provenance
from milora.runs.provenance import commit


def test_it_holds_versions_machine_and_inputs():
    record = provenance(seeds={"training": 3}, data_hash="d", base_fingerprint="b", command=["milora", "train"])
    assert json.loads(json.dumps(record)) == record
    assert record["versions"]["python"] == platform.python_version()
    assert record["versions"]["milora"] == milora.__version__
    for package in ("torch", "transformers", "peft", "trl", "accelerate", "datasets"):
        assert record["versions"][package] == metadata.version(package)
    assert record["seeds"] == {"training": 3}
    assert (record["data_hash"], record["base_fingerprint"]) == ("d", "b")
    assert record["command"] == ["milora", "train"]
    assert record["hardware"]["cpu"] and record["hardware"]["cores"] >= 1
    assert record["hardware"]["memory"] > 10**8
    assert record["time"].endswith("+00:00")


@pytest.fixture
def package_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository, in which the package seems to lie in ``src/milora``."""
    package = tmp_path / "src" / "milora"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "--quiet")
    monkeypatch.setattr(milora, "__file__", str(package / "__init__.py"))
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_of_a_checkout_says_whether_files_differ(package_in: Path):
    git(package_in, "add", ".")
    git(package_in, "commit", "--quiet", "-m", "m")
    head = git(package_in, "rev-parse", "HEAD")
    assert commit() == head
    (package_in / "src" / "milora" / "__init__.py").write_text("changed = True\n")
    assert commit() == f"{head}-dirty"


def test_no_commit_where_the_package_is_not_tracked(package_in: Path):
    (package_in / "other.txt").write_text("")
    git(package_in, "add", "other.txt")
    git(package_in, "commit", "--quiet", "-m", "another project's")
    assert commit() is None
