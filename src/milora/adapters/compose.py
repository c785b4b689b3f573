"""Several adapters of one base as one adapter: W' = W + sum_k a_k dW_k.

Where the frozen factors agree, the sum is one of what trains, exactly, and the result an adapter of the same method:

    mica      R  = sum a_k R_k           lora_xs   C  = sum a_k C_k
    svft      M  = sum a_k M_k           svf       z' = 1 + sum a_k (z_k - 1)

(SVFT's patterns may differ: the sum stands at the union of their positions. SVF's z' with sum a_k = 1 is the weighted
mean of the z_k; adding up the z_k themselves would double the base.) Everywhere else the products are put side by side,

    sum a_k s_k P_k Q_k  =  [a_1 s_1 P_1, a_2 s_2 P_2, ...] [Q_1; Q_2; ...]

a plain LoRA whose rank is the sum of theirs. What is not linear in its parameters is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from milora.adapters.compose_sum import summed
from milora.adapters.config import SpectralConfig
from milora.adapters.delta import AdapterFile
from milora.adapters.export import check_free, lora_config, named_pairs, write_adapter
from milora.errors import MiloraError
from milora.methods import get_method

MADE_OF = ("base_fingerprint", "base_dtype", "base_values")  # what unsaved L0 and R0 are made of
ALIKE = 1e-5  # relative; frozen factors that were computed twice differ by rounding


@dataclass(frozen=True)
class Composed:
    """What was written.

    Attributes:
        path: the adapter's folder.
        how: "sum" for an adapter of the same method, "concatenation" for a plain LoRA.
        method: the method, or "lora".
        rank: of the LoRA; None for a sum, which has the rank of its parts.
    """

    path: Path
    how: str
    method: str
    rank: int | None = None


def compose(
    adapters: Sequence[str | Path],
    weights: Sequence[float],
    output: str | Path,
    *,
    model_name_or_path: str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
) -> Composed:
    """Write the weighted sum of saved adapters as one adapter.

    Args:
        adapters: folders of saved adapters: of this package, or plain LoRA.
        weights: a_k, one an adapter.
        output: the folder to write.
        model_name_or_path: the base, where an adapter was saved without its L0 and R0.
        overwrite: replace the folder if it stands.
        force: take adapters whose bases have different fingerprints.

    Raises:
        MiloraError: fewer than two adapters, another number of weights, a weight that is not finite, adapters of
            different bases, an adapter that is not linear in its parameters, trained biases or whole modules.
    """
    target = Path(output).expanduser()
    files = composable(adapters, target, model_name_or_path=model_name_or_path, overwrite=overwrite, force=force)
    if len(weights) != len(files) or not all(math.isfinite(w) for w in weights):
        raise MiloraError(f"weights: got {list(weights)}, allowed {len(files)} finite numbers")
    if _agree(files):
        config, tensors = summed(files, weights)
        done, fields = Composed(target, "sum", config.method), config.to_dict()
    else:
        tensors, rank = side_by_side(files, weights)
        done = Composed(target, "concatenation", "lora", rank)
        lora = lora_config(files[0], rank, None if model_name_or_path is None else str(model_name_or_path))
        fields = lora.to_dict() | {"target_modules": sorted({m for f in files for m in f.modules})}
        fields |= {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    write_adapter(target, tensors, fields)
    return done


def composable(
    adapters: Sequence[str | Path],
    output: str | Path,
    *,
    model_name_or_path: str | Path | None = None,
    overwrite: bool = False,
    force: bool = False,
) -> list[AdapterFile]:
    """The files of adapters that can be added up, whatever the weights; arguments and errors are those of `compose`."""
    check_free(Path(output).expanduser(), overwrite, *adapters, model_name_or_path)
    if len(adapters) < 2:
        raise MiloraError(f"adapters: got {len(adapters)}, allowed two or more")
    files = [AdapterFile(adapter, base=model_name_or_path) for adapter in adapters]
    for file in files:
        _check_linear(file)
    _check_one_base(files, force)
    return files


def _check_linear(file: AdapterFile) -> None:
    """A sum of changes is the change of a sum only without magnitudes, and only of what is a change of weights."""
    if isinstance(file.config, SpectralConfig) and file.config.magnitude:
        raise MiloraError(
            f"adapter: {file.folder} has a magnitude, whose norm is not linear; allowed adapters without one"
        )
    file.refuse_fused("compose")
    if file.others:
        raise MiloraError(f"adapter: {file.folder} holds {file.others[0]}, allowed no trained biases or whole modules")


def _check_one_base(files: Sequence[AdapterFile], force: bool) -> None:
    ours = [f for f in files if isinstance(f.config, SpectralConfig)]
    for file in ours[1:]:
        first, other = ours[0].config, file.config
        same = file.modules == ours[0].modules and first.base_precision == other.base_precision  # pyright: ignore
        if same and first.base_fingerprint != other.base_fingerprint and not force:  # pyright: ignore
            raise MiloraError(
                f"adapter: {file.folder} was made on another base than {ours[0].folder}"
                f" ({other.base_fingerprint} and {first.base_fingerprint}); --force takes both"  # pyright: ignore
            )


def _agree(files: Sequence[AdapterFile]) -> bool:
    """Whether one method's adapters stand on the same frozen factors, so that what trains can be added up."""
    configs = [f.config for f in files if isinstance(f.config, SpectralConfig)]
    if len(configs) < len(files) or any(c.method != configs[0].method for c in configs):
        return False
    if "L" in get_method(configs[0].method).trains or any(f.modules != files[0].modules for f in files):
        return False
    if not any(c.keeps_bases for c in configs):
        drawn = ("components_seed",) if configs[0].components == "random" else ()
        made = ("r", "rank_pattern", "components", "svd_rank", *MADE_OF, *drawn)
        if all(getattr(c, n) == getattr(configs[0], n) for c in configs for n in made):
            return True
    return all(_alike(files[0].parts(m), f.parts(m)) for f in files[1:] for m in files[0].modules)


def _alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    pairs = [(one[n], other[n]) for n in ("L0", "R0") if n in one]
    return all(a.shape == b.shape and float((a - b).abs().max()) <= ALIKE * float(a.abs().max()) for a, b in pairs)


def side_by_side(files: Sequence[AdapterFile], weights: Sequence[float]) -> tuple[dict[str, Tensor], int]:
    """The LoRA tensors [a_1 s_1 P_1, a_2 s_2 P_2, ...] and [Q_1; Q_2; ...] by PEFT's names, and their common rank."""
    pairs: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for file, a in zip(files, weights, strict=True):
        for module in file.modules:
            delta = file.delta(module)
            P, Q = pairs.setdefault(module, ([], []))
            P.append(a * delta.P)
            Q.append(delta.Q)
    joined = {m: (torch.cat(P, dim=1), torch.cat(Q)) for m, (P, Q) in pairs.items()}
    rank = max(A.shape[0] for _, A in joined.values())
    return named_pairs(joined, rank, {m for file in files for m in file.embeddings}), rank
