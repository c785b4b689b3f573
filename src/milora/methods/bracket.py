"""The bracket of the equation, from what trains and what is frozen; the same for a layer, a merge and an export.

    both outer factors train:   L R - L0 R0 = L dR + dL R0 = P Q,   P = [L0 + dL, dL] (out, 2r),  Q = [dR; R0] (2r, in)
    the right one trains:       L0 dR       = P Q,                  P = L0 (out, r),              Q = dR (r, in)
    the core trains:            L0 C R0     = P Q,                  P = L0 (out, q),              Q = C R0 (q, in)

C stands for C - C0 from here on. Each is zero to the last bit at the start, where a difference of two products would be
so only up to rounding; the gradients are those of L, C and R themselves.

With a magnitude (DoRA, arXiv 2402.09353; a row of W is an output):

    W' = g (W + s P Q) / ||W + s P Q||_row,     g = g0 + dg,  g0 = ||W||_row

The norm is a constant for the gradient (section 4.3 there), and comes from ||W||^2 + 2 s <W, P Q> + s^2 ||P Q||^2 row
by row, so that W + s P Q is never built and the quotient is 1 to the last bit at the start. On a base whose rows have
other norms than g0 (trained on a quantised base, merged into the high-precision one) ||W|| is that base's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from milora.methods.core import Core


@dataclass(frozen=True)
class Bracket:
    """One adapter of one weight; what a method does not have is None.

    Attributes:
        scale: s.
        L0: (out, q) frozen.
        R0: (q, in) frozen.
        dL: (out, q) trained.
        dR: (q, in) trained.
        core: the pattern of C.
        c: the numbers that stand in the core (size,).
        indices: (2, size) of a scattered core.
    """

    scale: float
    L0: Tensor
    R0: Tensor | None = None
    dL: Tensor | None = None
    dR: Tensor | None = None
    core: Core | None = None
    c: Tensor | None = None
    indices: Tensor | None = None

    def pair(self) -> tuple[Tensor, Tensor]:  # (out, q), (q, in)
        """P and Q with s P Q = s (L C R - L0 C0 R0)."""
        if self.core is not None:
            assert self.c is not None and self.R0 is not None
            return self.L0, self.core.apply(self.c, self.R0.T, self.indices).T
        assert self.dR is not None
        if self.dL is None:
            return self.L0, self.dR
        assert self.R0 is not None
        return joined(self.L0, self.R0, self.dL, self.dR)

    def __call__(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        """s P Q x."""
        if self.core is not None:
            assert self.c is not None and self.R0 is not None
            z = self.core.apply(self.c, F.linear(x, self.R0), self.indices)
            return F.linear(z * self.scale if self.scale != 1.0 else z, self.L0)
        if self.dL is None:
            P, Q = self.pair()
            return F.linear(F.linear(x, Q) * self.scale, P)
        assert self.dR is not None and self.R0 is not None
        return _Pair.apply(x, self.L0, self.R0, self.dL, self.dR, self.scale)  # pyright: ignore[reportReturnType]

    def terms(self) -> tuple[tuple[Tensor, Tensor], ...]:  # each (out, q), (q, in)
        """The products whose sum is P Q, with no column twice: L0 dR and dL R where both outer factors train."""
        if self.dL is None:
            return (self.pair(),)
        assert self.dR is not None and self.R0 is not None
        return (self.L0, self.dR), (self.dL, self.dR + self.R0)

    def dense(self) -> Tensor:  # (out, in)
        """s P Q."""
        return sum(P @ Q for P, Q in self.terms()) * self.scale  # pyright: ignore[reportReturnType]


def joined(L0: Tensor, R0: Tensor, dL: Tensor, dR: Tensor) -> tuple[Tensor, Tensor]:
    """P = [L0 + dL, dL] (..., out, 2r) and Q = [dR; R0] (..., 2r, in)."""
    return torch.cat([L0 + dL, dL], dim=-1), torch.cat([dR, R0], dim=-2)


class _Pair(torch.autograd.Function):
    """s (L dR + dL R0) x, with no gradient worked out for what is frozen and no factor joined or kept.

    With z1 = dR x, z = z1 + R0 x and g the gradient of the output:

        y = s (L0 z1 + dL z),   dL: s g^T z,   dR: (s g L)^T x,   x: s (g L dR + g dL R0)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, L0: Tensor, R0: Tensor, dL: Tensor, dR: Tensor, s: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        z1 = F.linear(flat, dR) * s  # (n, r)
        z = torch.addmm(z1, flat, R0.T, alpha=s)
        ctx.save_for_backward(x, z, L0, R0, dL, dR)
        ctx.s = s
        return torch.addmm(F.linear(z1, L0), z, dL.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, z, *factors = ctx.saved_tensors
        # Under autocast the products were taken in a lower precision than the factors have.
        L0, R0, dL, dR = (factor.to(g.dtype) for factor in factors)
        s, flat = ctx.s, g.reshape(-1, g.shape[-1])
        g0 = (flat @ dL) * s  # (n, r)
        g1 = torch.addmm(g0, flat, L0, alpha=s)
        gx = gdL = gdR = None
        if ctx.needs_input_grad[0]:
            gx = torch.addmm(g1 @ dR, g0, R0).view_as(x).to(x.dtype)
        if ctx.needs_input_grad[3]:
            gdL = (flat.T @ z.to(g.dtype)).to(factors[2].dtype)
        if ctx.needs_input_grad[4]:
            gdR = (g1.T @ x.reshape(-1, x.shape[-1]).to(g.dtype)).to(factors[3].dtype)
        return gx, None, None, gdL, gdR, None


_ROUNDING = 1e-5  # by which one row's norm differs, relative to itself, from machine to machine


def row_norms(W: Tensor) -> Tensor:  # (out, in) -> (out,)
    """g0 = ||W||_row, in float32 at least."""
    return torch.linalg.vector_norm(W.to(torch.promote_types(W.dtype, torch.float32)), dim=1)


def magnitude_quotient(W: Tensor, g0: Tensor, dg: Tensor, bracket: Bracket) -> Tensor:  # (out,)
    """(g0 + dg) / ||W + s P Q||_row; 1 for a row of W that is zero, which has no direction to keep.

    Args:
        W: (out, in), the base weight.
        g0: (out,), the row norms of the base weight that the adapter was made on.
        dg: (out,), trained.
        bracket: s P Q.
    """
    with torch.no_grad():
        P, Q = bracket.pair()
        s = bracket.scale
        inner = (F.linear(Q.to(W.dtype), W).T.to(P.dtype) * P).sum(1) * s  # <W, s P Q>_row
        square = ((P @ (Q @ Q.T)) * P).sum(1) * s * s  # ||s P Q||^2_row
        own = row_norms(W).to(g0.dtype)
        own = torch.where((own - g0).abs() <= _ROUNDING * g0, g0, own)
        safe = torch.where(own > 0, own, torch.ones_like(own))
        norm = safe * (1 + (2 * inner + square) / safe.square()).clamp_min(0).sqrt()
        norm = norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return torch.where(g0 > 0, (g0 + dg) / norm, torch.ones_like(g0))
