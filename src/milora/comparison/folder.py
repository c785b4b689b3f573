"""The comparison folder.

    comparison.yaml      the resolved grid; its first line marks the folder as a comparison
    runs/NAME/           each run, an ordinary run folder; NAME is LABEL[@VARIANT]-rRANK-lrRATE-sSEED
    runs/NAME/failed.json   {"error", "where"} of a run that failed, in place of an adapter
    selection/NAME/      the shorter runs from which learning rates were chosen
    selection.json       their validation losses, and which rate was chosen
    base/                measurements of the base model
    models/VARIANT/      a rescaled base model; VARIANT.json beside it says of which model and by what
    comparison.json      everything that was found
    report.html, .md, .json, .csv   what ``milora report`` writes of it
    locks/               one for each run: who holds it is at it

Overwriting deletes these and nothing else that lies in the folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from milora.comparison.grid import Grid
from milora.comparison.load import check_grid, dump
from milora.errors import MiloraError
from milora.models.atomic import write_text
from milora.recipes import strict_yaml

MEASURED, FAILED = "measured.json", "failed.json"  # in a run folder
MARK = "# The resolved grid of a milora comparison.\n"
# comparison.yaml is last: an interrupted deletion still leaves a folder known as a comparison.
WRITTEN = (
    "runs", "selection", "selection.json", "base", "models", "comparison.json", "locks",
    "report.html", "report.md", "report.json", "report.csv", "comparison.yaml",
)  # fmt: skip


class ComparisonFolder:
    """A folder that holds one comparison. The object knows paths; nothing is touched before it is asked."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.grid_file = self.path / "comparison.yaml"
        self.result_file = self.path / "comparison.json"
        self.selection_file = self.path / "selection.json"
        self.runs = self.path / "runs"
        self.models = self.path / "models"
        self.locks = self.path / "locks"

    @property
    def holds_comparison(self) -> bool:
        """Whether a comparison was started here."""
        if not self.grid_file.is_file():
            return False
        with self.grid_file.open(encoding="utf-8", errors="replace") as file:
            return file.readline() == MARK

    def base(self, variant: str, single: bool) -> Path:
        """Where the measurements of the base model lie."""
        return self.path / "base" if single else self.path / "base" / variant

    def grid(self) -> Grid:
        """Read the resolved grid.

        Raises:
            MiloraError: the folder holds no comparison.
        """
        if not self.holds_comparison:
            raise MiloraError(f"{self.path}: holds no comparison (no comparison.yaml of one)")
        return check_grid(strict_yaml.parse(self.grid_file.read_text(encoding="utf-8"), str(self.grid_file)))

    def create(self, grid: Grid, *, overwrite: bool = False) -> None:
        """Make the folder; a comparison that lies there keeps its grid until `write_grid`, or is deleted first.

        Raises:
            MiloraError: the folder holds other files and no comparison.
        """
        if self.path.is_dir() and any(self.path.iterdir()) and not self.holds_comparison:
            raise MiloraError(f"output_dir: {self.path} is not empty and holds no comparison; give a new folder")
        if overwrite and self.holds_comparison:
            self._delete()
        self.path.mkdir(parents=True, exist_ok=True)
        self.locks.mkdir(exist_ok=True)
        if not self.holds_comparison:
            self.write_grid(grid)

    def write_grid(self, grid: Grid) -> None:
        """Write the resolved grid, whose runs are those that lie here or will."""
        write_text(self.grid_file, MARK + dump(grid))

    def _delete(self) -> None:
        for name in WRITTEN:
            found = self.path / name
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found)
            else:
                found.unlink(missing_ok=True)
