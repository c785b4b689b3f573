"""A block Lanczos space: Rayleigh-Ritz of the operator T itself, where T is well-conditioned at the wanted end.

    T Q_j = Q_1 C_1j + ... + Q_j C_jj + Q_j+1 B_j,      H = Q^T T Q:   what orthogonalising T Q_j leaves behind

The wanted values are T's largest, so that rounding in T moves them by eps only; H costs nothing beyond the basis, and
T V of Ritz vectors V nothing beyond a product with it:

    T (Q z) = [Q, Q_k+1] [H; B_k] z

What is left of the energy's error is read off one eigendecomposition of H (`remainder`). `krylov.py` is for operators
that are not so well-conditioned.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from milora.linalg.krylov import DEFECT, NotConverged, Ritz, haste, orthonormal
from milora.linalg.products import few

CAUTION = 5.0  # the remainder of flat edges was measured at up to five times what the estimate says
RESIDUAL = 7.5e-3  # of which the half step at the top's end was measured to leave 0.5 to 0.56
KEPT = 0.1  # share of a block outside the space from which rounding is no matter


class LanczosSpace:
    """A growing block Lanczos space.

    Args:
        operator: T, (n, b) -> (n, b).
        start: X (n, b), a random block that T has been applied to, say.
        room: the most columns.
        smallest: whether T = (W^T W - shift I)^-1, or W^T W.
        shift: see there; Ritz values and energies are given of W^T W.
    """

    def __init__(
        self, operator: Callable[[Tensor], Tensor], start: Tensor, room: int, smallest: bool, shift: float = 0.0
    ) -> None:
        n, self.b = start.shape
        self.operator, self.smallest, self.shift = operator, smallest, shift
        self.room = min(room, n - self.b)
        # Basis vectors are rows: see `times`. The last block is the one that T is applied to next.
        self.Qt = start.new_empty(self.room + self.b, n)
        self.H = start.new_zeros(self.room + self.b, self.room)
        self.p = 0  # columns that T has been applied to
        self.twice = True  # whether the last block was made orthogonal to the others twice
        self.Qt[: self.b] = orthonormal(start).T
        self.known = (self.H[:0, 0], self.H[:0, :0])  # eigenvalues and eigenvectors of H at the last look

    def grow(self) -> bool:
        """Apply T to the last block, and add what is new; False where there is no room.

        Raises:
            NotConverged: T X lies in the space.
        """
        if self.p + self.b > self.room:
            return False
        old, new = self.p, self.p + self.b
        Qt = self.Qt[:new]
        Y = self.operator(Qt[old:].T)
        eps, tiny = torch.finfo(Y.dtype).eps, torch.finfo(Y.dtype).tiny
        lengths = torch.linalg.vector_norm(Y, dim=0).clamp_min(tiny)
        Y, C, B = Y / lengths, None, None
        for _ in range(3):
            overlap = few(Qt, Y)
            Y = Y - few(Qt.T, overlap)
            # What rounding leaves of the space is large against what little is left of Y, and one block's overlap
            # becomes the next one's: a second time, except for every other block where much is left.
            self.twice = not self.twice or float(torch.linalg.vector_norm(Y, dim=0).min()) < KEPT
            if self.twice:
                again = few(Qt, Y)
                Y, overlap = Y - few(Qt.T, again), overlap + again
            Y, R = torch.linalg.qr(Y)
            C, B = (overlap, R) if B is None or C is None else (C + overlap @ B, R @ B)
            # Of a column only R_ii is new to the columns before it; dividing by that enlarges what is left.
            share = R.diagonal().abs() / torch.linalg.vector_norm(R, dim=0).clamp_min(tiny)
            if float(share.min()) * DEFECT >= eps:
                break
        else:
            raise NotConverged  # T has nothing new to say: the rank is used up
        self.Qt[new : new + self.b] = Y.T
        self.H[:new, old:new] = C * lengths
        self.H[new : new + self.b, old:new] = B * lengths
        self.p = new
        return True

    def values(self, q: int) -> Tensor:  # (q,)
        """The q wanted Ritz values of W^T W, the wanted end first."""
        t = self._wanted(q)[0].to(torch.float64)
        return 1 / t.clamp_min(1e-300) + self.shift if self.smallest else t

    def energy(self, r: int) -> float:
        """Sum of the r wanted Ritz values."""
        return float(self.values(r).sum())

    def remainder(self, r: int) -> tuple[float, float]:
        """What is predicted to be left of the energy's error, relative, and by what factor a block lowers it.

        With t_i, z_i the eigenpairs of H, the next block lowers (raises) the energy to second order by

            sum_i ||B_k z_i||^2 / (t_i - d) * dE / dt_i,     d the mean of C_kk, for what C_k+1,k+1 will be

        and the next ones by as much less each as the z_i end smaller in the last block than in the one before.
        """
        t, Z = (x.to(torch.float64) for x in self._wanted(r))
        before, last = (Z[i : i + self.b].square().sum(0) for i in (self.p - 2 * self.b, self.p - self.b))
        B, C = (self.H[i : i + self.b, self.p - self.b : self.p].cpu() for i in (self.p, self.p - self.b))
        slope = 1 / t.square() if self.smallest else torch.ones_like(t)
        d = min(float(C.diagonal().mean()), 0.95 * float(t[-1]))
        gain = float(((B @ Z[-self.b :].to(B.dtype)).square().sum(0) / (t - d) * slope).sum())
        gain /= max(abs(self.energy(r)), 1e-300)
        rho = float((last * t * slope).sum() / (before * t * slope).sum())
        return (gain / (1 - rho) if rho < 1 else math.inf), rho

    def residual(self, r: int) -> float:
        """The largest max_i ||T v_i - t_i v_i|| / (s_i s_1) of the top's r Ritz vectors, t_i = s_i^2; no bottom's."""
        if self.smallest:
            return 0.0  # the largest singular value, which it would be measured by, is not in the space
        t, Z = self._wanted(r)
        B = self.H[self.p : self.p + self.b, self.p - self.b : self.p].cpu()
        roots = t.clamp_min(torch.finfo(t.dtype).tiny).sqrt()
        return float((torch.linalg.vector_norm(B @ Z[-self.b :], dim=0) / roots).max() / roots[0])

    def ritz(self, q: int) -> Ritz:
        """The q wanted Ritz vectors."""
        Z = self._wanted(q)[1].to(self.Qt.device)
        return Ritz((Z.T @ self.Qt[: self.p]).T.to(torch.float64), self.values(q))

    def applied(self, q: int) -> Tensor:  # (n, q)
        """T V of the q wanted Ritz vectors V, without a further application."""
        t, Z = (x.to(self.Qt.device) for x in self._wanted(q))
        end = self.p + self.b
        HZ = torch.cat([Z * t, self.H[self.p : end, self.p - self.b : self.p] @ Z[-self.b :]])
        return (HZ.T @ self.Qt[:end]).T

    def _wanted(self, q: int) -> tuple[Tensor, Tensor]:  # (q,) falling, (p, q)
        """Eigenvalues and eigenvectors of H, on the CPU, for it is small."""
        if len(self.known[0]) != self.p:
            t, Z = torch.linalg.eigh(self.H[: self.p, : self.p].cpu(), UPLO="U")
            self.known = t, Z
        t, Z = self.known
        return t[-q:].flip(0), Z[:, -q:].flip(1)


def settle(space: LanczosSpace, r: int, tolerance: float, first: int, pace: float = 1.0) -> float:
    """Grow a space until what is left of the energy's error is within a tolerance, and the top's residuals are small.

    Args:
        space: the space.
        r: how many Ritz values are wanted.
        tolerance: what may be left, relative.
        first: blocks before the first look.
        pace: a block is expected to gain this power of what `remainder` says it gains; less for a flatter edge.

    Returns:
        What is predicted to be left, relative.

    Raises:
        NotConverged: there is no room for the blocks that would be needed.
        Clustered: see `haste`.
    """
    blocks = max(first, -(-r // space.b), 2)
    while all([space.grow() for _ in range(blocks)]):
        left, rho = space.remainder(r)
        left *= CAUTION
        left *= haste(space.values(min(r + space.b, space.p)), r, space.b, tolerance) if left <= tolerance else 1
        if left <= tolerance and space.residual(r) <= RESIDUAL:
            return left
        known = 0 < rho < 1 and tolerance < left < math.inf
        more = math.log(tolerance / left) / math.log(rho) / pace if known else 1.0
        if space.p > 0.6 * space.room and space.p + more * space.b > 2 * space.room:
            break
        blocks = max(1, min(round(more), space.p // (2 * space.b)))
    raise NotConverged
