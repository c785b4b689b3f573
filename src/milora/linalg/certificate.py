"""The checks that every decomposition passes before it is given out.

By default, for a part (U, S, V) of A, cast as it will be given out:

    ||A v_i - s_i u_i||,  ||A^T u_i - s_i v_i||      both residuals, against sigma_1
    ||U^T U - I||_F,  ||V^T V - I||_F                orthonormality
    ||A V||_F^2 and ||A^T U||_F^2 against sum s^2    the energy that either side captures
    estimate                                         what the iteration believes to have left undone
    probe                                            the singular value that a search outside V comes nearest to

Strict, in addition, a proof. With theta the square of the part's inner edge and mu = (1 - slack) theta, for the bottom:

    G + tau V V^T - mu I  positive definite   =>   at most r eigenvalues of G = A^T A lie below mu

for a change of rank r lifts at most r eigenvalues (Sylvester's law of inertia; the Cholesky factorisation succeeds just
when the matrix is positive definite). For the top, mu = (1 + slack) theta and mu I - G + tau V V^T. The same splitting
bounds the energy: with R = G V - V Theta and any t > 0,

    G  >=  [Theta - t R^T R,  0;  0,  (mu - 1/t) I]     in the basis V and its complement,

so that the optimum is at least sum_i min(theta_i, mu - 1/t) - t ||R||_F^2.

"At most r below mu" is the resolution of the proof: singular values that agree to 5e-7 of themselves count as equal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from milora.linalg.parts import Part
from milora.linalg.products import gram, times

ORTHONORMALITY = 1e-6
RESIDUALS = (1e-6, 5e-3)  # the smaller and the larger one
ENERGY = 1e-4
EPS32 = torch.finfo(torch.float32).eps
TINY = torch.finfo(torch.float64).tiny
MISSED = 0.01  # a probe that comes this far inside the edge has found a missed direction
SLACK = 1e-6  # relative, in squares of singular values
WIDEST = 0.02  # slack beyond which a proof says too little


class Refused(Exception):
    """A result failed a check; says which."""


@dataclass(frozen=True)
class Certificate:
    """The checks of one decomposition, passed. Residuals are relative to sigma_1.

    Attributes:
        algorithm: what computed it.
        estimate: the iteration's own estimate of the relative error of the captured energy; 0 for direct ones.
        residual_left: max_i ||W v_i - s_i u_i|| / sigma_1.
        residual_right: max_i ||W^T u_i - s_i v_i|| / sigma_1.
        orthonormality: the larger of ||U^T U - I||_F and ||V^T V - I||_F, after the cast.
        probe: the nearest singular value that a search outside the part found, relative to the part's edge: at least
            about 1 for the bottom, at most about 1 for the top; None where nothing is outside or nothing was iterated.
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
        values: dict[str, Any] = {**fields, "refused": tuple(fields["refused"])}
        return cls(**values)


def norm_estimate(A: Tensor) -> float:  # (m, n)
    """sigma_1 from below, within a factor of two for all but contrived matrices: a power step from the longest row."""
    v = A[int(torch.linalg.vector_norm(A, dim=1).argmax())]
    u = A @ (v / torch.linalg.vector_norm(v).clamp_min(torch.finfo(A.dtype).tiny))
    v = A.T @ (u / torch.linalg.vector_norm(u).clamp_min(torch.finfo(A.dtype).tiny))
    return max(float(torch.linalg.vector_norm(u)), float(torch.linalg.vector_norm(v)))


def certify(
    A: Tensor,  # (m, n), m >= n
    part: Part,
    kind: str,
    largest: float,
    *,
    strict: bool = False,
    refused: tuple[str, ...] = (),
) -> Certificate:
    """Check a part as it will be given out: in A's dtype.

    Args:
        A: the matrix.
        part: the triplets to check.
        kind: "bottom", "top", "take" or "full".
        largest: an estimate of sigma_1 from below.
        strict: prove, for the bottom and the top, that nothing was missed.
        refused: what was refused before.

    Raises:
        Refused: a check failed.
    """
    U, S, V = (x.to(A.dtype) for x in (part.U, part.S, part.V))
    largest = max(largest, float(S[0]), torch.finfo(A.dtype).tiny)
    AV, AtU = times(A, V), times(A.T, U)
    left = float(torch.linalg.vector_norm(AV - U * S, dim=0).max()) / largest
    right = float(torch.linalg.vector_norm(AtU - V * S, dim=0).max()) / largest
    orthonormality = max(_defect(U), _defect(V))
    eps, k = torch.finfo(A.dtype).eps, len(S)
    # All triplets at once: each of k^2 products is rounded, so that their norm grows with k.
    own = 8 * eps * max(A.shape) ** 0.5 if kind == "full" else 0.0
    _require("orthonormality", orthonormality, max(own * k**0.5, ORTHONORMALITY))
    _require("residual", min(left, right), own or RESIDUALS[0])
    _require("residual", max(left, right), RESIDUALS[1])
    energy = float(part.S.square().sum())
    resolved = k * (4 * eps * largest) ** 2
    _require("estimate", part.estimate * energy, ENERGY * energy + resolved)
    for side in (AV, AtU):
        _require("energy", abs(float(side.square().sum(dtype=torch.float64)) - energy), ENERGY * energy + resolved)
    if part.probe is not None:
        inside = 1 - part.probe if kind == "bottom" else part.probe - 1
        noise = kind == "bottom" and float(part.S[0]) * inside <= 4 * eps * largest
        _require("a direction outside", 0.0 if noise else inside, MISSED)
    proves = strict and kind in ("bottom", "top") and k < A.shape[1]
    bound = prove(A, part, kind, largest) if proves else None
    return Certificate(
        part.algorithm, part.estimate, left, right, orthonormality, part.probe, strict, bound, tuple(refused)
    )


def prove(A: Tensor, part: Part, kind: str, largest: float) -> float:
    """Prove that a part misses no smaller (larger) singular value.

    Where the edge is so small that a Gram matrix of float64 does not resolve it, all singular values are computed
    instead, by LAPACK in float64, and counted.

    Args:
        A: (m, n), m >= n.
        part: its triplets.
        kind: "bottom" or "top".
        largest: an estimate of sigma_1 from below.

    Returns:
        A bound on the error of the part's energy, relative to it, or to r (4 eps32 sigma_1)^2 where that is more.

    Raises:
        Refused: some singular value outside lies inside the part's edge.
    """
    A = A.to(torch.float64)
    theta, sign = part.S.square(), 1.0 if kind == "bottom" else -1.0
    # Of a weight of zeros in float64 both are zero.
    energy = max(float(theta.sum()), len(theta) * (4 * EPS32 * largest) ** 2, TINY)
    edge = float(theta[0] if kind == "bottom" else theta[-1])
    rounding = 4 * A.shape[1] * torch.finfo(torch.float64).eps * largest**2
    slack = max(SLACK, 2 * rounding / edge) if edge > 0 else 1.0
    if slack > WIDEST:
        return _count(A, part, kind, largest) / energy
    V = part.V
    mu = (1 - sign * slack) * edge
    lifted = sign * gram(A) + 2 * largest**2 * (V @ V.T)  # its lower triangle, which is all that is read
    lifted.diagonal().sub_(sign * mu + rounding)
    if int(torch.linalg.cholesky_ex(lifted).info) != 0:
        raise Refused("inertia: a singular value outside lies inside the edge")
    residual = float(torch.linalg.vector_norm(times(A.T, times(A, V)) - V * theta)) ** 2
    return min(_error(theta, mu, residual, share, sign) for share in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)) / energy


def _error(theta: Tensor, mu: float, residual: float, share: float, sign: float) -> float:
    """How much the energy can be off, 1/t being `share` of mu."""
    beyond = mu * (1 - sign * share)
    return float((sign * (theta - beyond)).clamp_min(0).sum()) + residual / (share * mu)


def _count(A: Tensor, part: Part, kind: str, largest: float) -> float:
    """Compare a part with all singular values; how much its energy is off."""
    every, r = torch.linalg.svdvals(A), len(part.S)
    right = every[-r:] if kind == "bottom" else every[:r]
    rounding = 16 * A.shape[0] ** 0.5 * torch.finfo(torch.float64).eps * largest
    if float((part.S - right).abs().max()) > SLACK * float(right[0]) + rounding:
        raise Refused("count: a singular value outside lies inside the edge")
    return abs(float(part.S.square().sum() - right.square().sum())) + 2 * float(right.sum()) * rounding


def _defect(X: Tensor) -> float:  # (n, r)
    X = X.to(torch.float64)
    return float(torch.linalg.matrix_norm(X.T @ X - torch.eye(X.shape[1], dtype=X.dtype, device=X.device)))


def _require(what: str, value: float, allowed: float) -> None:
    if not value <= allowed:
        raise Refused(f"{what}: {value:.3g}, allowed {allowed:.3g}")
