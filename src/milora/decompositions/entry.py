"""One file of the store: a part of one weight's decomposition, with a checksum over all that it holds.

    <store>/<key[:2]>/<key>/bottom-64.float32.v1.safetensors

holds U, S, Vh and, as metadata, a JSON record (weight's name and shape, part, dtype, version, resolution, certificate)
and the checksum of record and tensors. A result with a strict certificate has `.strict` before the ending.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from milora.decompositions.part import Part
from milora.linalg import SVD, Certificate
from milora.models.atomic import replacing

_NAME = re.compile(r"([a-z]+)(?:-(\d+))?(?:-[0-9a-f]{16})?\.(float32|float64)\.v(\d+)(\.strict)?\.safetensors")


class Corrupt(Exception):
    """A file of the store that is not what was written; the text says what is wrong with it."""


@dataclass(frozen=True)
class EntryName:
    """What the name of a file of the store says.

    Attributes:
        part: the name of the part.
        dtype: "float32" or "float64".
        version: of the engine that computed it.
        strict: whether its certificate is strict.
    """

    part: str
    dtype: str
    version: int
    strict: bool = False

    def __str__(self) -> str:
        return f"{self.part}.{self.dtype}.v{self.version}{'.strict' * self.strict}.safetensors"

    @classmethod
    def parse(cls, name: str) -> EntryName | None:
        """The parts of a file's name, or None where it is no entry's."""
        match = _NAME.fullmatch(name)
        return match and cls(name.split(".")[0], match[3], int(match[4]), match[5] is not None)

    def holds(self, asked: Part) -> Part | None:
        """The part that the file holds where the asked one can be cut from it, else None."""
        kind, _, r = self.part.partition("-")
        if self.part == asked.name:
            return asked
        held = Part.full() if kind == "full" else Part(asked.kind, int(r)) if kind in ("bottom", "top") else None
        return held if held is not None and held.name == self.part and held.serves(asked) else None


def write_entry(path: Path, svd: SVD, record: dict[str, Any]) -> None:
    """Write a result whole or not at all.

    Args:
        path: the file.
        svd: the result, with its certificate.
        record: key, name (of the weight), shape, part, indices, dtype, version.

    Raises:
        MiloraError: the disk is full.
        OSError: the folder cannot be written to.
    """
    tensors = {n: getattr(svd, n).detach().cpu().contiguous() for n in ("U", "S", "Vh")}
    certificate = svd.certificate.as_dict() if svd.certificate is not None else None
    text = json.dumps({**record, "resolution": svd.resolution, "certificate": certificate}, sort_keys=True)
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"record": text, "checksum": _checksum(text, tensors)})


def read_record(path: Path) -> dict[str, Any]:
    """The record of an entry, with nothing checked but that it is one.

    Raises:
        Corrupt: the file's head is broken.
        FileNotFoundError: it is not there (any more).
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
    except (SafetensorError, ValueError) as error:
        raise Corrupt(f"broken or truncated: {' '.join(str(error).split())}") from error
    return _parsed(_with_record(metadata))


def read_entry(path: Path) -> tuple[SVD, dict[str, Any]]:
    """Read an entry and check it: checksum, names, shapes, finite numbers.

    Raises:
        Corrupt: it is not what was written.
        FileNotFoundError: it is not there (any more).
    """
    metadata, tensors = _whole(path)
    if tensors.keys() != {"U", "S", "Vh"} or metadata.get("checksum") != _checksum(metadata["record"], tensors):
        raise Corrupt("its checksum does not match")
    record = _parsed(metadata)
    name = EntryName.parse(path.name)
    if name is None or (record["key"], record["part"], record["version"], record["dtype"]) != (
        path.parent.name,
        name.part,
        name.version,
        name.dtype,
    ):
        raise Corrupt("it holds another entry than its name says")
    svd = SVD(tensors["U"], tensors["S"], tensors["Vh"], record["resolution"], _certificate(record))
    _check(svd, record)
    if name.strict and not (svd.certificate and svd.certificate.strict):
        raise Corrupt("its certificate is not strict, as its name says")
    return svd, record


def _whole(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    # Read rather than mapped: a mapped file that is replaced on another machine kills whoever looks at it.
    content = path.read_bytes()
    try:
        tensors = load(content)
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise Corrupt(f"broken or truncated: {' '.join(str(error).split())}") from error
    return _with_record(head.get("__metadata__")), tensors


def _with_record(metadata: dict[str, str] | None) -> dict[str, str]:
    if not metadata or "record" not in metadata:
        raise Corrupt("it holds no record")
    return metadata


def _parsed(metadata: dict[str, str]) -> dict[str, Any]:
    try:
        record = json.loads(metadata["record"])
        whole = {"key", "name", "shape", "part", "dtype", "version", "certificate"} <= record.keys()
    except (ValueError, AttributeError) as error:
        raise Corrupt("its record is broken") from error
    if not whole:
        raise Corrupt("its record is not whole")
    return record


def _certificate(record: dict[str, Any]) -> Certificate | None:
    try:
        return record["certificate"] and Certificate.from_dict(record["certificate"])
    except (TypeError, KeyError) as error:
        raise Corrupt("its certificate is broken") from error


def _check(svd: SVD, record: dict[str, Any]) -> None:
    (m, n), k = record["shape"], min(record["shape"])
    kind, _, rest = record["part"].partition("-")
    vectors = 0 if kind == "values" else k if kind == "full" else int(rest.split("-")[0])
    shapes = tuple(svd.U.shape), tuple(svd.S.shape), tuple(svd.Vh.shape)
    if shapes != ((m, vectors), (vectors or k,), (vectors, n)):
        raise Corrupt(f"its tensors have shapes {shapes}")
    # Entries of unit vectors cannot overflow a sum, so that it is finite exactly where all of them are.
    finite = bool(torch.isfinite(svd.S).all()) and math.isfinite(float(svd.U.sum()) + float(svd.Vh.sum()))
    if not finite or str(svd.S.dtype) != f"torch.{record['dtype']}":
        raise Corrupt(f"it holds NaN or Inf, or numbers that are not {record['dtype']}")


def _checksum(record: str, tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128(record.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.view(torch.uint8).numpy().reshape(-1).data)
    return digest.hexdigest()
