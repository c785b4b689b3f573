"""Where a model's files are: in a folder here, or on the hub."""

from __future__ import annotations

from pathlib import Path

from milora.errors import MiloraError
from milora.models.checkpoint import is_local


def locate(
    model: str | Path, gguf_file: str | None = None, trust_remote_code: bool = False, fetch: bool = True
) -> tuple[Path, str | None]:
    """The folder that a model's files lie in, and the GGUF file in it if that is to be read.

    Args:
        model: a local folder, a .gguf file, or a hub name, whose weights are fetched unless they are here.
        gguf_file: the GGUF file inside the folder.
        trust_remote_code: fetch the model's own code too.
        fetch: fetch what is not here.

    Raises:
        MiloraError: no such file, or a hub name that is neither here nor to be had.
    """
    path = Path(model).expanduser()
    if path.suffix == ".gguf" and not path.is_dir():
        path, gguf_file = path.parent, path.name
    elif not is_local(model):
        path = _snapshot(str(model), gguf_file, trust_remote_code, fetch)
    if gguf_file is not None and not (path / gguf_file).is_file():
        raise MiloraError(f"gguf_file: {path / gguf_file} does not exist")
    return path, gguf_file


def _snapshot(name: str, gguf_file: str | None, trust_remote_code: bool, fetch: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = [gguf_file] if gguf_file else ["*.json", "*.safetensors", *(["*.py"] if trust_remote_code else [])]
    # Other forms of the same weights lie in folders of their own, or are called so.
    unwanted = None if gguf_file else ["*/*", "consolidated*", "adapter_*"]
    try:
        return Path(
            snapshot_download(name, allow_patterns=wanted, ignore_patterns=unwanted, local_files_only=not fetch)
        )
    except (OSError, ValueError) as error:
        if isinstance(error, LocalEntryNotFoundError):
            why = ", and the hub cannot be reached" if fetch else ""
            raise MiloraError(f"model {name}: not in the hub's local cache{why}") from error
        raise MiloraError(f"model {name}: {str(error).strip().splitlines()[0]}") from error
