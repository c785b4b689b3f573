"""The size of each arm's change beside LoRA's at the same rate: predicted before training, and measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from milora.report import figure as fig
from milora.report.arms import Arm
from milora.report.document import (
    Cell,
    Folded,
    Picture,
    Section,
    Table,
    Text,
    missing,
    number,
    number_cell,
    short,
    text_cell,
)
from milora.report.learning import arm_slots

Values = list[tuple[str, float | None, float | None]]  # module type, predicted, measured


def section(arms: Sequence[Arm]) -> Section | None:
    """A picture for each variant of the base model, and the table of all."""
    values = {arm.name: own for arm in arms if (own := _values(arm))}
    if not values:
        return None
    pictures = []
    for i, variant in enumerate(dict.fromkeys(arm.variant for arm in arms if arm.name in values)):
        pictures.append(
            _picture(
                f"ratios-{i}",
                variant,
                {a.name: values[a.name] for a in arms if a.variant == variant and a.name in values},
                arm_slots(arms),
            )
        )
    rows = [
        [text_cell(arm), text_cell(name), number_cell(p), number_cell(m), _off(p, m)]
        for arm, own in values.items()
        for name, p, m in own
    ]
    header = [
        ("arm", False),
        ("module", False),
        ("predicted", True),
        ("measured", True),
        ("prediction is off by", True),
    ]
    table = Table("ratios-table", "‖ΔW‖ as a ratio to LoRA's at the same learning rate", header, rows)
    said = "A ratio above 1 is a larger change than LoRA's."
    if any(arm.predicted for arm in arms):
        said += " Predicted from the factors at the start: ‖ΔW‖ ∼ lr · s · √(out ‖A₀‖² + in ‖B₀‖²)."
    title = "Predicted and measured size of the change"
    return Section("ratios-section", title, [Text(said), *pictures, Folded("The numbers", [table])])


def _values(arm: Arm) -> Values:
    predicted, measured = _by_name(arm.predicted), _by_name(arm.measured)
    return [(name, predicted.get(name), measured.get(name)) for name in dict.fromkeys([*predicted, *measured])]


def _off(predicted: float | None, measured: float | None) -> Cell:
    if predicted is None or not measured:
        return missing()
    off = predicted / measured - 1
    return Cell(f"{100 * off:+.0f} %".replace("-", "−"), off)


def _picture(id: str, variant: str, values: dict[str, Values], slots: dict[str, int]) -> Picture:
    told = [
        f"{arm}, {name}: predicted {'none' if p is None else number(p)}, measured {'none' if m is None else number(m)}"
        for arm, own in values.items()
        for name, p, m in own
    ]
    where = "" if variant == "base" else f" @{variant}"
    title, alt = f"Size of the change as a ratio to LoRA's: predicted and measured{where}", "; ".join(told) + "."
    return Picture(id, title, alt, lambda: _draw(id, title, alt, values, slots, variant))


def _by_name(record: dict[str, Any]) -> dict[str, float]:
    named = {**(record.get("by_type") or {}), "all": record.get("all")}
    return {name: float(v) for name, v in named.items() if isinstance(v, int | float)}


def _draw(id: str, title: str, alt: str, pairs: dict[str, Values], slots: dict[str, int], variant: str) -> str:
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(name for values in pairs.values() for name, _, _ in values))
    step = 0.8 / len(pairs)
    with fig.new_figure(3.6) as figure:
        axis = figure.subplots()
        handles = []
        for i, (arm, values) in enumerate(pairs.items()):
            look = fig.look(slots[arm])
            dots = {"color": look["color"], "marker": look["marker"], "linestyle": ""}
            for name, p, m in values:
                x = names.index(name) - 0.4 + step * (i + 0.5)
                if p is not None and m is not None:
                    axis.plot([x, x], [p, m], color=look["color"], linewidth=1)
                if p is not None:
                    axis.plot([x], [p], fillstyle="none", **dots)
                if m is not None:
                    axis.plot([x], [m], **dots)
            handles.append(Line2D([], [], label=short(arm.replace(f"@{variant}", "")), **dots))
        axis.axhline(1, color=fig.MUTED, linewidth=0.8)
        axis.set_xticks(range(len(names)), [n[-16:] for n in names])
        axis.set_ylabel("‖ΔW‖ / ‖ΔW‖ of LoRA\n(hollow: predicted, full: measured)")
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
        return fig.svg(figure, id, title, alt)
