"""Grids of runs, compared: methods, ranks, learning rates and seeds on one base model."""

from milora.comparison.engine import compare
from milora.comparison.grid import Grid
from milora.comparison.load import grids, load_grid

__all__ = ["Grid", "compare", "grids", "load_grid"]
