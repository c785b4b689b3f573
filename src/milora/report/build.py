"""From what was read to a document: which sections there are, and in which order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import milora
from milora.report import (
    beside,
    findings,
    learning,
    metrics,
    origins,
    pareto,
    projections,
    ratios,
    results,
    samples,
    subspaces,
)
from milora.report.arms import Arm, arms_of, bases_of
from milora.report.document import Document, Section
from milora.report.folders import Material


def build(material: Material, title: str | None = None) -> Document:
    """The document of a comparison or of runs; a section that has nothing to show is left out.

    Args:
        material: of ``folders.read``.
        title: of the page; by default the folder's name.
    """
    arms = arms_of(material)
    chosen, bases = [arm for arm in arms if arm.chosen], bases_of(material)
    fronts = pareto.fronts(material, arms)
    # Reading samples may find files that cannot be read, so the list of those comes last.
    parts: list[Section | None] = [
        results.checks(material.record),
        results.table(arms, bases),
        results.differences(chosen),
        beside.section(chosen),
        pareto.section(fronts),
        results.matched(material.record),
        learning.rates(material.selection, arms),
        learning.losses(chosen),
        learning.validation(chosen),
        learning.retention(chosen, bases),
        learning.ranks(chosen),
        subspaces.similarity(chosen),
        projections.section(chosen),
        subspaces.spectra(chosen),
        ratios.section(chosen),
        results.scores(material),
        samples.section(material, chosen),
        origins.section(material),
        origins.failed(material, arms),
    ]
    sections = [findings.section(material, arms, fronts), *(part for part in parts if part)]
    kind = "Comparison" if material.record or material.grid else "Run" if len(material.runs) == 1 else "Runs"
    subtitle = f"{kind} · written by milora {milora.__version__}"
    name = title or str(material.record.get("name") or material.title)
    return Document(name, subtitle, sections, [_record(arm) for arm in arms])


def _record(arm: Arm) -> dict[str, Any]:
    """An arm for machines; what was not measured is absent."""
    return {
        "arm": arm.name,
        "label": arm.label,
        "variant": arm.variant,
        "method": arm.method,
        "r": arm.r,
        "learning_rate": arm.learning_rate,
        "chosen": arm.chosen,
        "seeds": arm.seeds,
        "failed": arm.failed,
        "trainable_parameters": arm.trainable,
        "metrics": {
            name: {"mean": m.mean, "stderr": m.stderr, "by_seed": m.by_seed}
            for name, m in ((n, arm.metrics[n]) for n in metrics.ordered(arm.metrics))
        },
        "against": arm.against,
        "beside": arm.beside or None,
        "predicted": arm.predicted or None,
        "measured": arm.measured or None,
    }


def tables(document: Document) -> list[tuple[Section, Any]]:
    """Every table of a document with its section, folded ones too, in the order of reading.

    Raises:
        ValueError: two blocks of one id, of which a page would show one.
    """
    found = [(section, b) for section in document.sections for b in flat(section.blocks) if b.kind == "table"]
    twice = [id for id, n in Counter(b.id for _, b in found).items() if n > 1]
    if twice:
        raise ValueError(f"tables of one id: {', '.join(twice)}")
    return found


def flat(blocks: list[Any]) -> list[Any]:
    """The blocks with those that are folded among them."""
    return [b for block in blocks for b in (flat(block.blocks) if block.kind == "folded" else [block])]
