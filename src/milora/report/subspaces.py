"""Where the change of each weight lies: similarity to top, bottom and random directions, and its spectrum.

MiLoRA (arXiv:2406.09044, appendix A.1):   phi(A, B) = ||A^T B||_F^2 / r,   A of dW, B of W, both (d, r)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from milora.report import figure as fig
from milora.report.arms import Arm
from milora.report.document import Cell, Folded, Picture, Section, Table, Text, missing, number, number_cell, short, text_cell
from milora.report.learning import arm_slots, picture
from milora.report.lines import Panel, Series, from_to

SIDES = ("left", "right")
PARTS = ("top", "bottom", "random")
PER_PICTURE = 8  # panels; a model with experts has many module types


def similarity(arms: Sequence[Arm]) -> Section | None:
    """A heat map of phi by layer and module type for each arm, mean over its seeds, and a table by type."""
    blocks: list[Any] = []
    rows: list[list[Cell]] = []
    for i, arm in enumerate(arms):
        grids = _grids(arm)
        if not grids:
            continue
        rows += _by_type(arm, grids)
        title = f"φ of {arm.name} by layer and module"
        blocks.append(_heat_map(f"phi-{i}", title, grids))
    if not blocks:
        return None
    header = [("arm", False), ("module", False)] + [(f"φ {s}, {p}", True) for s in SIDES for p in PARTS]
    table = Table("phi-table", "φ by module type, mean over layers and seeds", header, rows)
    said = (
        "φ is the share of the change's leading directions that lies in the span of W's top, bottom or random ones, "
        "left and right: 1 all of it, 0 none. White cells were not measured."
    )
    return Section("subspaces", "Subspace similarity", [Text(said), *blocks, table])


Grid = dict[tuple[int, str], float]  # (layer, type) -> phi


def _modules(arm: Arm) -> Iterable[dict[str, Any]]:
    for run in arm.runs:
        for module in run.analysis.get("modules") or []:
            if isinstance(module, dict):
                yield module


def _grids(arm: Arm) -> dict[tuple[str, str], Grid]:
    values: dict[tuple[str, str], dict[tuple[int, str], list[float]]] = {}
    for module in _modules(arm):
        at = (module.get("layer") if isinstance(module.get("layer"), int) else -1, str(module.get("type")))
        for side in SIDES:
            for part in PARTS:
                value = ((module.get("phi") or {}).get(side) or {}).get(part)
                if isinstance(value, int | float):
                    values.setdefault((side, part), {}).setdefault(at, []).append(float(value))
    return {key: {at: _mean(v) for at, v in grid.items()} for key, grid in values.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _types(grids: dict[tuple[str, str], Grid]) -> list[str]:
    return list(dict.fromkeys(module for grid in grids.values() for _, module in grid))


def _by_type(arm: Arm, grids: dict[tuple[str, str], Grid]) -> list[list[Cell]]:
    rows = []
    for name in [*_types(grids), "all"]:
        cells = []
        for side in SIDES:
            for part in PARTS:
                found = [v for (_, module), v in grids.get((side, part), {}).items() if name in (module, "all")]
                cells.append(number_cell(_mean(found)) if found else missing())
        rows.append([text_cell(arm.name), text_cell(name), *cells])
    return rows


def _heat_map(id: str, title: str, grids: dict[tuple[str, str], Grid]) -> Picture:
    told = []
    for (side, part), grid in grids.items():
        values = list(grid.values())
        told.append(f"{side}, {part}: mean {number(_mean(values))}, {number(min(values))} to {number(max(values))}")
    layers = {layer for grid in grids.values() for layer, _ in grid}
    alt = f"Heat maps over {len(layers)} layers and {len(_types(grids))} module types. {'; '.join(told)}."
    return Picture(id, title, alt, lambda: _draw_heat_map(id, title, alt, grids))


def _draw_heat_map(id: str, title: str, alt: str, grids: dict[tuple[str, str], Grid]) -> str:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    types = _types(grids)
    layers = sorted({layer for grid in grids.values() for layer, _ in grid})
    sides = [side for side in SIDES if any(key[0] == side for key in grids)]
    with fig.new_figure(len(sides) * (0.45 + 0.19 * len(types)) + 0.75) as figure:
        axes = figure.subplots(len(sides), len(PARTS), squeeze=False, sharex=True, sharey=True)
        colours = colormaps["cividis"].with_extremes(bad=(0, 0, 0, 0))
        for i, side in enumerate(sides):
            for j, part in enumerate(PARTS):
                grid = grids.get((side, part), {})
                values = np.array([[grid.get((layer, t), np.nan) for layer in layers] for t in types])
                shown = axes[i, j].imshow(values, cmap=colours, norm=Normalize(0, 1), aspect="auto", interpolation="none")
                axes[i, j].set_title(f"{side}, {part}", loc="left", fontweight="normal")
                axes[i, j].grid(False)
                ticks = range(0, len(layers), max(1, math.ceil(len(layers) / 6)))
                axes[i, j].set_xticks(list(ticks), [str(layers[k]) if layers[k] >= 0 else "–" for k in ticks])
                axes[i, j].set_yticks(range(len(types)), [t[-18:] for t in types], fontsize=7.5)
        for axis in axes[-1]:
            axis.set_xlabel("layer")
        figure.colorbar(shown, ax=axes, label="φ", shrink=0.9, aspect=25, pad=0.01)
        return fig.svg(figure, id, title, alt)


def spectra(arms: Sequence[Arm]) -> Section | None:
    """The singular values of dW by module type: the median over layers and seeds."""
    slots = arm_slots(arms)
    found: dict[str, list[Series]] = {}
    rows = []
    for arm in arms:
        by_type: dict[str, list[list[float]]] = {}
        for module in _modules(arm):
            if values := [v for v in module.get("spectrum") or [] if isinstance(v, int | float)]:
                by_type.setdefault(str(module.get("type")), []).append(values)
        for name, all_values in by_type.items():
            middle = [median(column) for column in zip(*all_values, strict=False)]
            points = [(float(i + 1), v if v > 0 else None) for i, v in enumerate(middle)]
            found.setdefault(name, []).append(Series(arm.name, slots[arm.name], points))
            ranks, intruders = _numbers(arm, name, "effective_rank"), _numbers(arm, name, "intruders")
            rows.append(
                [
                    text_cell(arm.name), text_cell(name), number_cell(middle[0]), number_cell(middle[-1]),
                    number_cell(_mean(ranks)) if ranks else missing(),
                    number_cell(_mean(intruders)) if intruders else missing(),
                ]
            )  # fmt: skip
    if not found:
        return None
    axis = "singular value of ΔW"
    panels = [Panel(name, "index", axis, s, y_log=True, markers=False) for name, s in found.items()]
    header = [("arm", False), ("module", False), ("largest", True), ("last one kept", True)]
    header += [("effective rank", True), ("intruders per matrix", True)]
    table = Table("spectra-table", "Singular values of ΔW: medians over layers and seeds", header, rows)
    pictures = [
        picture(f"spectra-{i}", "Singular values of ΔW by module type, median over layers",
                " ".join(from_to(p.series, p.title) for p in panels[i : i + PER_PICTURE]), panels[i : i + PER_PICTURE])
        for i in range(0, len(panels), PER_PICTURE)
    ]  # fmt: skip
    return Section("spectra", "Spectra of the change", [*pictures, Folded("The numbers", [table])])


def _numbers(arm: Arm, module_type: str, key: str) -> list[float]:
    of_type = [m.get(key) for m in _modules(arm) if str(m.get("type")) == module_type]
    return [float(v) for v in of_type if isinstance(v, int | float)]


def ratios(arms: Sequence[Arm]) -> Section | None:
    """||dW|| of each arm as a ratio to LoRA's at the same rate: predicted from the start, and measured."""
    rows: list[list[Cell]] = []
    pairs: dict[str, list[tuple[str, float | None, float | None]]] = {}
    for arm in arms:
        predicted, measured = _by_name(arm.predicted), _by_name(arm.measured)
        for name in dict.fromkeys([*predicted, *measured]):
            p, m = predicted.get(name), measured.get(name)
            pairs.setdefault(arm.name, []).append((name, p, m))
            off = Cell(f"{100 * (p / m - 1):+.0f} %".replace("-", "−"), p / m - 1) if p is not None and m else missing()
            rows.append([text_cell(arm.name), text_cell(name), number_cell(p), number_cell(m), off])
    if not rows:
        return None
    told = [
        f"{arm}, {name}: predicted {'none' if p is None else number(p)}, measured {'none' if m is None else number(m)}"
        for arm, values in pairs.items()
        for name, p, m in values
    ]
    title, slots = "Size of the change as a ratio to LoRA's: predicted and measured", arm_slots(arms)
    shown = Picture("ratios", title, "; ".join(told) + ".", lambda: _draw_ratios(title, "; ".join(told), pairs, slots))
    header = [("arm", False), ("module", False), ("predicted", True), ("measured", True), ("prediction is off by", True)]
    table = Table("ratios-table", "‖ΔW‖ as a ratio to LoRA's at the same learning rate", header, rows)
    said = "Predicted from the factors at the start: ‖ΔW‖ ∼ lr · s · √(out ‖A₀‖² + in ‖B₀‖²)."
    return Section("ratios-section", "Predicted and measured size of the change", [Text(said), shown, table])


def _by_name(record: dict[str, Any]) -> dict[str, float]:
    named = {**(record.get("by_type") or {}), "all": record.get("all")}
    return {name: float(v) for name, v in named.items() if isinstance(v, int | float)}


def _draw_ratios(title: str, alt: str, pairs: dict[str, list[Any]], slots: dict[str, int]) -> str:
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
            handles.append(Line2D([], [], label=short(arm), **dots))
        axis.axhline(1, color=fig.MUTED, linewidth=0.8)
        axis.set_xticks(range(len(names)), [n[-16:] for n in names])
        axis.set_ylabel("‖ΔW‖ / ‖ΔW‖ of LoRA\n(hollow: predicted, full: measured)")
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
        return fig.svg(figure, "ratios", title, alt)

