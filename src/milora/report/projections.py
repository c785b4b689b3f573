"""How much of W and of its change lies in three pairs of directions: MiLoRA's Table 5, by module type.

MiLoRA (arXiv:2406.09044, section 5.3):   ||U^T W V||,  ||U^T dW V||,  U and V of dW, of W's top, of a random matrix;
amplification factor = ||U^T dW V|| / ||U^T W V||, both with those of dW
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from milora.report.arms import Arm
from milora.report.document import Section, Table, Text, number_cell, text_cell
from milora.report.subspaces import modules_of

# Columns: whose directions, which matrix.
NORMS = [("dW", "W"), ("W", "W"), ("random", "W"), ("dW", "dW")]
TITLES = {"dW": "ΔW", "W": "W, top", "random": "random"}


def section(arms: Sequence[Arm]) -> Section | None:
    """The table: a row for each arm and module type, means over layers and seeds."""
    rows = []
    for arm in arms:
        by_type: dict[str, list[dict[str, Any]]] = {}
        for module in modules_of(arm):
            if isinstance(module.get("projection"), dict):
                by_type.setdefault(str(module.get("type")), []).append(module["projection"])
        if by_type:
            by_type["all"] = [found for own in by_type.values() for found in own]
        for name, found in by_type.items():
            means = [_mean(found, *key) for key in [*NORMS, ("dW", "amplification")]]
            rows.append([text_cell(arm.name), text_cell(name), *(number_cell(mean) for mean in means)])
    if not rows:
        return None
    header = [("arm", False), ("module", False)]
    header += [(f"‖UᵀWV‖ of {TITLES[of]}" if what == "W" else f"‖UᵀΔWV‖ of {TITLES[of]}", True) for of, what in NORMS]
    header += [("amplification", True)]
    said = (
        "U and V are the leading directions of ΔW, of W, or of a random matrix. The amplification factor is the norm "
        "of ΔW over that of W in the directions of ΔW; its mean is over matrices, not the ratio of the means."
    )
    table = Table("projections-table", "Projections, means over layers and seeds", header, rows)
    return Section("projections", "Projections and amplification", [Text(said), table])


def _mean(found: Sequence[dict[str, Any]], of: str, what: str) -> float | None:
    values = [(own.get(of) or {}).get(what) for own in found]
    there = [float(value) for value in values if isinstance(value, int | float)]
    return fmean(there) if there else None
