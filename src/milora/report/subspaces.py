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
from milora.report.learning import arm_slots, picture
from milora.report.lines import Panel, Series, from_to, split

SIDES = ("left", "right")
PARTS = ("top", "bottom", "random")
PER_PICTURE = 8  # arms or panels; a model with experts has many module types


def similarity(arms: Sequence[Arm]) -> Section | None:
    """Heat maps of phi by layer and module type, a row for each arm, means over its seeds; and a table by type."""
    grids = {arm.name: own for arm in arms if (own := _grids(arm))}
    if not grids:
        return None
    rows = [row for name, own in grids.items() for row in _by_type(name, own)]
    names = list(grids)
    pictures = [
        _heat_maps(f"phi-{i}", {name: grids[name] for name in names[i : i + PER_PICTURE]})
        for i in range(0, len(names), PER_PICTURE)
    ]
    header = [("arm", False), ("module", False)] + [(f"φ {s}, {p}", True) for s in SIDES for p in PARTS]
    table = Table("phi-table", "φ by module type, mean over layers and seeds", header, rows)
    said = (
        "φ is the share of the change's leading directions that lies in the span of W's top, bottom or random ones, "
        "left and right: 1 all of it, 0 none. An empty cell was not measured."
    )
    return Section("subspaces", "Subspace similarity", [Text(said), *pictures, Folded("The numbers", [table])])


Grid = dict[tuple[int, str], float]  # (layer, type) -> phi
Grids = dict[tuple[str, str], Grid]  # (side, part) -> its grid


def modules_of(arm: Arm) -> Iterable[dict[str, Any]]:
    """The modules that the analyses of an arm's runs name."""
    for run in arm.runs:
        for module in run.analysis.get("modules") or []:
            if isinstance(module, dict):
                yield module


def _grids(arm: Arm) -> Grids:
    values: dict[tuple[str, str], dict[tuple[int, str], list[float]]] = {}
    for module in modules_of(arm):
        layer = module.get("layer")
        at = (layer if isinstance(layer, int) else -1, str(module.get("type")))
        for side in SIDES:
            for part in PARTS:
                value = ((module.get("phi") or {}).get(side) or {}).get(part)
                if isinstance(value, int | float):
                    values.setdefault((side, part), {}).setdefault(at, []).append(float(value))
    return {key: {at: _mean(v) for at, v in grid.items()} for key, grid in values.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _types(grids: Grids) -> list[str]:
    return list(dict.fromkeys(module for grid in grids.values() for _, module in grid))


def _by_type(arm: str, grids: Grids) -> list[list[Cell]]:
    rows = []
    for name in [*_types(grids), "all"]:
        cells = []
        for side in SIDES:
            for part in PARTS:
                found = [v for (_, module), v in grids.get((side, part), {}).items() if name in (module, "all")]
                cells.append(number_cell(_mean(found)) if found else missing())
        rows.append([text_cell(arm), text_cell(name), *cells])
    return rows


def _heat_maps(id: str, grids: dict[str, Grids]) -> Picture:
    told = []
    for name, own in grids.items():
        means = [f"{side} {part} {number(_mean(list(grid.values())))}" for (side, part), grid in own.items()]
        told.append(f"{name}: {', '.join(means)}")
    alt = f"Heat maps by layer and module type. Mean φ of {'; '.join(told)}."
    title = "φ by layer and module"
    return Picture(id, title, alt, lambda: _draw_heat_maps(id, title, alt, grids))


def _draw_heat_maps(id: str, title: str, alt: str, grids: dict[str, Grids]) -> str:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = ScalarMappable(Normalize(0, 1), colormaps["cividis"].with_extremes(bad=(0, 0, 0, 0)))
    # Distances in inches are given rather than found: finding them takes seconds with so many axes.
    left, right, top, bottom, gap = 0.95, 0.55, 0.42, 0.45, 0.34
    heights = [0.16 + 0.125 * len(_types(own)) for own in grids.values()]
    height = top + sum(heights) + gap * (len(grids) - 1) + bottom
    columns = [(side, part) for side in SIDES for part in PARTS]
    width = (fig.WIDTH - left - right - 0.3) / len(columns)
    with fig.new_figure(height) as figure:
        figure.set_layout_engine("none")
        y = height - top
        for i, (name, own) in enumerate(grids.items()):
            y -= heights[i]
            for j, column in enumerate(columns):
                x = left + j * width + (0.2 if j >= len(PARTS) else 0)
                place = (x / fig.WIDTH, y / height, (width - 0.08) / fig.WIDTH, heights[i] / height)
                axis = figure.add_axes(place)
                _heat_map(axis, own, own.get(column, {}), colours, labels=j == 0)
                if i == 0:
                    axis.text(0, 1 + 0.3 / heights[i], ", ".join(column), transform=axis.transAxes, fontsize=8)
                if i == len(grids) - 1:
                    axis.set_xlabel("layer", fontsize=7.5)
            figure.text(
                left / fig.WIDTH, (y + heights[i] + 0.06) / height, short(name, 60), fontsize=8.5, weight="bold"
            )
            y -= gap
        long = min(1.8, height - top - bottom)
        bar = figure.add_axes((1 - 0.42 / fig.WIDTH, 1 - (top + long) / height, 0.1 / fig.WIDTH, long / height))
        figure.colorbar(colours, cax=bar).ax.set_title("φ", fontsize=8.5, fontweight="normal")
        return fig.svg(figure, id, title, alt)


def _heat_map(axis: Any, own: Grids, grid: Grid, colours: Any, labels: bool) -> None:
    import numpy as np

    types = _types(own)
    layers = sorted({layer for found in own.values() for layer, _ in found})
    values = np.array([[grid.get((layer, t), np.nan) for layer in layers] for t in types])
    axis.imshow(values, cmap=colours.cmap, norm=colours.norm, aspect="auto", interpolation="none")
    axis.grid(False)
    axis.tick_params(length=2, pad=1.5, labelsize=7)
    ticks = list(range(0, len(layers), max(1, math.ceil(len(layers) / 4))))
    axis.set_xticks(ticks, [str(layers[k]) if layers[k] >= 0 else "–" for k in ticks])
    axis.set_yticks(range(len(types)), [t[-16:] for t in types] if labels else [""] * len(types))


def spectra(arms: Sequence[Arm]) -> Section | None:
    """The singular values of dW by module type: the median over layers and seeds."""
    slots = arm_slots(arms)
    found: dict[str, list[Series]] = {}
    rows = []
    for arm in arms:
        by_type: dict[str, list[list[float]]] = {}
        for module in modules_of(arm):
            if values := [float(v) for v in module.get("spectrum") or [] if isinstance(v, int | float)]:
                by_type.setdefault(str(module.get("type")), []).append(values)
        for name, all_values in by_type.items():
            middle = [median(column) for column in zip(*all_values, strict=False)]
            points = [(float(i + 1), v if v > 0 else None) for i, v in enumerate(middle)]
            found.setdefault(name, []).append(Series(arm.name, slots[arm.name], points, variant=arm.variant))
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
    panels = split([Panel(name, "index", axis, s, y_log=True, markers=False) for name, s in found.items()])
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
    of_type = [m.get(key) for m in modules_of(arm) if str(m.get("type")) == module_type]
    return [float(v) for v in of_type if isinstance(v, int | float)]
