"""What each arm trains and gains beside another's: the two ratios of MiCA (arXiv 2604.01694)."""

from __future__ import annotations

from collections.abc import Sequence

from milora.report import metrics
from milora.report.arms import Arm
from milora.report.document import Section, Table, Text, plain_cell, text_cell


def section(arms: Sequence[Arm]) -> Section | None:
    """A table for each arm that others are set beside; None where the comparison has no such ratios."""
    tables = []
    for other in dict.fromkeys(name for arm in arms for name in arm.beside):
        found = {arm.name: arm.beside[other] for arm in arms if other in arm.beside}
        gains = metrics.ordered({name for ratios in found.values() for name in ratios.get("gain_ratio") or {}})
        header = [("arm", False), ("trained numbers", True), *((metrics.title(m), True) for m in gains)]
        rows = []
        for name, ratios in found.items():
            gained = ratios.get("gain_ratio") or {}
            rows.append([text_cell(name), *(plain_cell(v) for v in (ratios.get("footprint"), *map(gained.get, gains)))])
        title = f"Trained numbers and gain over the base, as a ratio to {'LoRA' if other == 'lora' else other}'s"
        tables.append(Table(f"beside-{other}", title, header, rows))
    if not tables:
        return None
    if not any(two.get("gain_ratio") for arm in arms for two in arm.beside.values()):
        return Section("beside", "Trained numbers", list(tables))
    said = (
        "A ratio of gains above 1: the arm has come further from the base model. It is left out where the other's own"
    )
    said += " difference from the base is not clear of zero."
    return Section("beside", "Trained numbers and gains", [Text(said), *tables])
