"""From what was read to a document: which sections there are, and in which order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import milora
from milora.report import findings, learning, metrics, origins, pareto, results, samples, subspaces
from milora.report.arms import Arm, arms_of
from milora.report.document import Document, Section
from milora.report.folders import Material


def build(material: Material, title: str | None = None) -> Document:
    """The document of a comparison or of runs; a section that has nothing to show is left out.

    Args:
        material: of ``folders.read``.
        title: of the page; by default the folder's name.
    """
    arms = arms_of(material)
    base = metrics.of_base(material.base, material.runs)
    # Reading samples and figures may find files that cannot be read, so the list of those comes last.
    parts: list[Section | None] = [
        results.checks(material.record),
        results.table(arms, base),
        results.differences(arms),
        pareto.section(material, arms),
        results.matched(material.record),
        learning.rates(material.selection, arms),
        learning.losses(arms),
        learning.validation(arms),
        learning.retention(arms),
        learning.ranks(arms),
        subspaces.similarity(arms),
        subspaces.spectra(arms),
        subspaces.ratios(arms),
        results.scores(material),
        samples.section(material, arms),
        origins.section(material),
        origins.failed(material),
    ]
    sections = [findings.section(material, arms), *(part for part in parts if part)]
    kind = "Comparison" if material.record or material.grid else "Run" if len(material.runs) == 1 else "Runs"
    subtitle = f"{kind} · written by milora {milora.__version__}"
    return Document(title or material.title, subtitle, sections, [_record(arm) for arm in arms])


def _record(arm: Arm) -> dict[str, Any]:
    """An arm for machines; what was not measured is absent."""
    return {
        "arm": arm.name,
        "label": arm.label,
        "method": arm.method,
        "r": arm.r,
        "learning_rate": arm.learning_rate,
        "seeds": arm.seeds,
        "failed": arm.failed,
        "trainable_parameters": arm.trainable,
        "metrics": {
            name: {"mean": m.mean, "stderr": m.stderr, "by_seed": m.by_seed}
            for name, m in ((n, arm.metrics[n]) for n in metrics.ordered(arm.metrics))
        },
        "against": arm.against,
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
