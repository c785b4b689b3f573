"""A block Krylov space and Rayleigh-Ritz in it: what the iterative algorithms share.

    K = span{X, T X, T^2 X, ...},   X (n, b),   T an operator on vectors of length n

For the bottom of W, T = (W^T W)^-1 by a factorisation. Keeping every block instead of the last one (subspace iteration)
reaches the same accuracy with a third of the applications. T is applied in float32: an error in it makes a vector of
the space a slightly worse choice, never a wrong one, because what is taken out of the space is measured with M, where
M^T M = W^T W:

    minimise ||M Q z|| / ||Q z||   over z:      H z = theta N z,   H = (M Q)^T (M Q),   N = Q^T Q

in float64, and with N, so that Q need be orthonormal only to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from milora.linalg.products import times

Operator = Callable[[Tensor], Tensor]  # Q (n, b) -> T Q (n, b)

MOST = 18  # blocks after which another algorithm is better; or a space of n / 4, if that is larger
DEFECT = 1e-5  # how far from orthonormal the basis may be
TIGHT = 2e-3  # a block of Ritz values within this share of the edge may be part of a larger cluster
CROWDED = 3e-3  # so may half a block next to the edge
HASTE = 3000.0  # how many times more may be left then than an estimate says


class NotConverged(Exception):
    """The Ritz values fall (the top's rise) too slowly for this operator, or the space cannot grow."""


class Clustered(Exception):
    """More values lie together than a block can tell apart, and some may be missing."""


@dataclass(frozen=True)
class Ritz:
    """Ritz vectors of W^T W.

    Attributes:
        V: orthonormal, one a column, the wanted end first.
        theta: their Ritz values, squares of singular values.
    """

    V: Tensor  # (n, q) float64
    theta: Tensor  # (q,) float64


def orthonormal(X: Tensor) -> Tensor:  # (n, b) -> (n, b)
    """An orthonormal basis of the columns' span; the columns may differ in length by any factor."""
    lengths = torch.linalg.vector_norm(X, dim=0)
    return torch.linalg.qr(X / lengths.clamp_min(torch.finfo(X.dtype).tiny)).Q


class KrylovSpace:
    """A growing block Krylov space.

    Args:
        operator: T, applied in the dtype of `start`.
        M: M^T M = W^T W - shift I, in the dtype of `start`.
        start: X; a random block that T has been applied to, say.
        shift: see M; Ritz values and energies are given of W^T W.
    """

    def __init__(self, operator: Operator, M: Tensor, start: Tensor, shift: float = 0.0) -> None:
        n, self.b = start.shape
        p = min(max(MOST * self.b, n // 4), n)
        self.operator, self.M, self.shift = operator, M, shift
        # Basis vectors are rows: see `times`.
        self.Qt = start.new_empty(p, n)
        self.MQt = torch.empty(p, M.shape[0], dtype=torch.float64, device=start.device)
        self.H, self.N = self.MQt.new_empty(p, p), self.MQt.new_empty(p, p)
        self.p, self.measured = 0, 0
        self.theta = self.H[0]  # the Ritz values of the last look, rising
        self.defect = torch.finfo(start.dtype).eps  # how far from orthonormal the basis can be by now
        self._append(orthonormal(start))

    def grow(self) -> bool:
        """Add the next block; False where there is no room for one.

        Raises:
            NotConverged: T X lies in the space.
        """
        if self.p + self.b > self.Qt.shape[0]:
            return False
        Qt = self.Qt[: self.p]
        Y = self.operator(Qt[-self.b :].T)
        Y = Y / torch.linalg.vector_norm(Y, dim=0).clamp_min(torch.finfo(Y.dtype).tiny)
        defect = self.defect
        for _ in range(4):
            # Of a column only R_ii is new to the space and to the columns before it; dividing by that enlarges whatever
            # overlap rounding has left.
            Y, R = torch.linalg.qr(Y - Qt.T @ (Qt @ Y))
            defect = defect / max(float(R.diagonal().abs().min()), 1e-30)
            if defect <= DEFECT:
                self.defect = max(self.defect, defect)
                self._append(Y)
                return True
            defect = torch.finfo(Y.dtype).eps
        raise NotConverged  # T has nothing new to say: the rank is used up

    def _append(self, Y: Tensor) -> None:  # (n, b)
        self.Qt[self.p : self.p + self.b] = Y.T
        self.p += self.b

    def _measure(self) -> None:
        """M Q, H and N for the blocks that do not have them yet: several at once are cheaper than one by one."""
        old, new = self.measured, self.p
        if old == new:
            return
        self.MQt[old:new] = times(self.M, self.Qt[old:new].T).T
        self.H[:new, old:new] = self.MQt[:new] @ self.MQt[old:new].T
        self.N[:new, old:new] = (self.Qt[:new] @ self.Qt[old:new].T).to(torch.float64)
        for gram in (self.H, self.N):
            gram[old:new, :old] = gram[:old, old:new].T
        self.measured = new

    def energy(self, r: int) -> float:
        """Sum of the r wanted Ritz values, as near as N is to I."""
        self._measure()
        self.theta = torch.linalg.eigvalsh(self.H[: self.p, : self.p].cpu()) + self.shift
        return float(self.theta[:r].sum())

    def ritz(self, q: int) -> Ritz:
        """The q wanted Ritz vectors."""
        self._measure()
        # A y = theta y with N = L L^T, A = L^-1 H L^-T, y = L^T z; on the CPU, for they are small.
        L = torch.linalg.cholesky(self.N[: self.p, : self.p].cpu())
        A = torch.linalg.solve_triangular(L, self.H[: self.p, : self.p].cpu(), upper=False)
        A = torch.linalg.solve_triangular(L, A.T, upper=False)
        theta, Z = torch.linalg.eigh((A + A.T) / 2)
        Z = torch.linalg.solve_triangular(L.T, Z[:, :q], upper=True)  # (p, q)
        Zt = Z.T.to(self.Qt.device)
        return Ritz((Zt @ self.Qt[: self.p].to(Zt.dtype)).T, theta[:q] + self.shift)


def haste(theta: Tensor, r: int, b: int, tolerance: float) -> float:  # (p,) the wanted end first
    """By how much the members of a cluster make an estimate too small: a block finds b of them, and the others late.

    Raises:
        Clustered: one is so tight that a block's worth of its members says nothing of the others.
    """
    theta = theta[: r + b] / theta[r - 1].abs().clamp_min(1e-300)
    width = (theta[b - 1 :] - theta[: len(theta) - b + 1]).abs()
    # Values that are all the same to the tolerance may take one another's place.
    if bool((width < TIGHT).any()) and float((theta[0] - theta[-1]).abs()) > tolerance:
        raise Clustered
    return HASTE if abs(float(theta[min(r + b // 2, len(theta)) - 1] - theta[r - 1])) < CROWDED else 1.0


def converge(space: KrylovSpace, r: int, tolerance: float, first: int = 5) -> float:
    """Grow a space until the r wanted Ritz values are predicted to be final.

    Each block lowers the energy E = sum theta, by steps that fall at least geometrically: with d the
    mean step of a block at the last look and rho the ratio of two such steps in a row, d rho / (1 - rho) is left.
    Several modes fall side by side and the slowest is seen last, so that a slow rho is trusted less: by 1 - rho again.

    Args:
        space: the space.
        r: how many Ritz values are wanted.
        tolerance: what may be left, relative to E.
        first: blocks before the first look.

    Returns:
        What is predicted to be left, relative to E.

    Raises:
        NotConverged: there is no room for the blocks that would be needed.
        Clustered: see `haste`.
    """
    while space.p < r or space.p < first * space.b:
        if not space.grow():
            raise NotConverged
    energy, step, blocks, gap = space.energy(r), math.inf, 1, 1
    while all([space.grow() for _ in range(blocks)]):
        before, energy = energy, space.energy(r)
        last, step = step, abs(before - energy) / max(abs(energy), 1e-300) / blocks
        gap, between = blocks, (gap + blocks) / 2
        rho = min((step / last) ** (1 / between), 0.95) if 0 < last < math.inf else 0.5
        left = step * rho / (1 - rho) ** 2
        left *= haste(space.theta, r, space.b, tolerance) if left <= tolerance else 1
        if left <= tolerance:
            return left
        more = math.log(tolerance / left) / math.log(rho) if rho > 0 else 0
        # Convergence quickens as the space grows, so that this is believed only of a space that has grown.
        room = space.Qt.shape[0]
        if space.p > 0.6 * room and space.p + more * space.b > 2 * room:
            break
        # A look costs as much as a block or two.
        blocks = max(1, min(int(more / 3), space.p // (4 * space.b)))
    raise NotConverged
