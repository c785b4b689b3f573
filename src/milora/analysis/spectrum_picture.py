"""A picture of a model's singular values: one panel for each module type, one curve for each layer."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from milora.analysis.spectrum import Spectrum
from milora.errors import MiloraError
from milora.models.atomic import replacing

FORMATS = (".png", ".svg", ".pdf")
_POINTS = 1500  # of a curve; more are not seen and make an SVG heavy
_COLUMNS = 4


def check_picture(path: Path) -> None:
    """Check before anything is measured that a picture can be drawn and written there.

    Raises:
        MiloraError: another ending, no such folder, or matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise MiloraError(f"output: got {path.name!r}, allowed names that end in {', '.join(FORMATS)}")
    if path.parent.exists() and not path.parent.is_dir():
        raise MiloraError(f"output: {path.parent} is no folder")
    if find_spec("matplotlib") is None:
        raise MiloraError("output: matplotlib is not installed; pip install 'milora[report]'")


def draw(found: Spectrum, path: Path, title: str = "") -> None:
    """Draw the singular values and write the picture, whole or not at all.

    Args:
        found: the spectra.
        path: the file; its ending says the format.
        title: what stands above.

    Raises:
        MiloraError: see `check_picture`; a full disk.
    """
    check_picture(path)
    figure = _figure(found, title)
    with replacing(path) as temporary:
        # A picture of the same numbers is the same file: no date in it.
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150, metadata=metadata)


def _figure(found: Spectrum, title: str) -> Any:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    types = list(dict.fromkeys(layer.module_type for layer in found.layers))
    columns = min(_COLUMNS, len(types))
    rows = math.ceil(len(types) / columns)
    figure = Figure(figsize=(1.6 + 3.2 * columns, 1.3 + 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    numbers = [layer.layer or 0 for layer in found.layers]
    # viridis runs from dark to light, readable in grey and by colour-blind people; its end is too light on white.
    colours = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))
    colour = ScalarMappable(Normalize(min(numbers), max(max(numbers), min(numbers) + 1)), colours)
    for i, (axis, name) in enumerate(zip(axes.flat, types, strict=False)):
        _panel(axis, found, name, colour)
        # The last panel of each column says what the index is, and the first one of each row what the values are.
        if i + columns >= len(types):
            axis.set_xlabel("index $i$ (1 is the largest)")
        if i % columns == 0:
            axis.set_ylabel(r"singular value $\sigma_i$" + "\n(in the weight's own unit)")
    axes[0, 0].set_ylim(*_limits(found))
    for axis in axes.flat[len(types) :]:
        axis.set_axis_off()
    bar = figure.colorbar(colour, ax=axes, label="layer", shrink=0.9, aspect=30)
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    low, high = found.interval
    under = f"grey band: {low:g} to {high:g};  dotted lines: the top and the bottom {found.rank}"
    figure.suptitle(f"{title}\n{under}" if title else under, fontsize=10)
    return figure


def _panel(axis: Any, found: Spectrum, module_type: str, colour: Any) -> None:
    axis.axhspan(*found.interval, color="0.92", zorder=0)
    shapes: dict[str, None] = {}
    longest = 0
    for layer, S in zip(found.layers, found.values, strict=True):
        if layer.module_type != module_type:
            continue
        k = len(S)
        longest = max(longest, k)
        shapes[f"{layer.shape[0]} x {layer.shape[1]}"] = None
        at = np.unique(np.round(np.linspace(0, k - 1, min(k, _POINTS))).astype(int))
        sigma = S.numpy()[at].astype(float)
        sigma[sigma <= 0] = np.nan  # a logarithm has no place for zero
        axis.plot(at + 1, sigma, color=colour.to_rgba(layer.layer or 0), linewidth=0.9, alpha=0.9)
    for edge in (found.rank, longest - found.rank):
        axis.axvline(edge + 0.5, color="0.45", linestyle=":", linewidth=0.8)
    axis.set_yscale("log")
    axis.set_xlim(1 - 0.02 * longest, 1.02 * longest)
    axis.set_title(f"{module_type}  ({', '.join(list(shapes)[:2])}{', ...' if len(shapes) > 2 else ''})", fontsize=9)
    axis.grid(True, which="major", color="0.85", linewidth=0.5)
    axis.tick_params(labelsize=8)


def _limits(found: Spectrum) -> tuple[float, float]:
    """Limits of the values that float32 arithmetic can tell from zero: one dead direction would flatten all curves."""
    eps = float(np.finfo(np.float32).eps)
    seen = [
        float(v)
        for layer, S in zip(found.layers, found.values, strict=True)
        for v in (S[0], S[eps * max(layer.shape) ** 0.5 * layer.sigma_max < S][-1:])
        if v.numel() and float(v) > 0
    ]
    return (min(seen) / 1.5, max(seen) * 1.5) if seen else (0.1, 1.0)
