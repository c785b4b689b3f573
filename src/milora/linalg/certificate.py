"""What was checked of a decomposition before it was given out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Certificate:
    """The checks of one decomposition, passed. Lengths are relative to sigma_1.

    Attributes:
        algorithm: what computed it.
        estimate: the last relative change of the captured energy, the iteration's own estimate; 0 for direct ones.
        residual_left: max_i ||W v_i - s_i u_i|| / sigma_1.
        residual_right: max_i ||W^T u_i - s_i v_i|| / sigma_1.
        orthonormality: the larger of ||U^T U - I||_F and ||V^T V - I||_F, after the cast.
        probe: the nearest singular value that a search outside the part found, relative to the part's edge: at least
            about 1 for the bottom, at most about 1 for the top; None where the part is the whole or was cut from it.
        strict: whether an inertia count proved that nothing was missed.
        energy_bound: with `strict`, a proven bound on the relative excess (bottom) or deficit (top) of the energy.
        refused: the algorithms whose results failed a check before this one.
    """

    algorithm: str
    estimate: float
    residual_left: float
    residual_right: float
    orthonormality: float
    probe: float | None = None
    strict: bool = False
    energy_bound: float | None = None
    refused: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        """The largest of its errors: estimate, smaller residual, orthonormality."""
        return max(self.estimate, min(self.residual_left, self.residual_right), self.orthonormality)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {**asdict(self), "refused": list(self.refused)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Certificate:
        """The certificate that `as_dict` wrote."""
        return cls(**{**fields, "refused": tuple(fields["refused"])})
