"""Where a run comes from: enough to do it again, or to see why a second one differs."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import milora

PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "lm-eval", "bitsandbytes",
)  # fmt: skip


def provenance(
    *,
    seeds: Mapping[str, int],
    data_hash: str | None = None,
    base_fingerprint: str | None = None,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Describe the software, the machine and the inputs of a run.

    Args:
        seeds: every seed that the run uses, by what it decides.
        data_hash: ``milora.data.data_hash`` of the training examples.
        base_fingerprint: ``milora.models.fingerprint`` of the base model.
        command: the command line; by default this process's own.

    Returns:
        What goes into provenance.json; the time is UTC, the memory in bytes.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command or [Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
        "seeds": dict(seeds),
        "data_hash": data_hash,
        "base_fingerprint": base_fingerprint,
    }


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of the installed packages that shape a run."""
    found = {"python": platform.python_version(), "milora": milora.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of this package with ``-dirty`` if files differ; None outside a checkout.

    A package that is installed somewhere inside another project's checkout is not tracked there, and
    that project's commit says nothing about it.
    """
    package = Path(milora.__file__).parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = _git(package, "rev-parse", "HEAD")
    return head and head + ("-dirty" if _git(package, "status", "--porcelain", "--", ".") else "")


def hardware() -> dict[str, Any]:
    """The processor, its cores, the memory in bytes and the names of the GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "memory": _memory(), "gpus": gpus}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
