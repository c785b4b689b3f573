"""How far Adam's first steps move a weight, from the factors at the start.

While the gradient keeps its sign Adam (Kingma & Ba, arXiv 1412.6980) moves each trained number by about lr a step, so
that a trained factor moves by lr times the root of its size, whatever the loss. To first order in lr

    dW = s (L0 dR + dL R0)    or    s L0 dC R0,        every entry of dR, dL, dC being +-lr

    ||dW||_F^2 ~ lr^2 s^2 (in ||L0||_F^2 + out ||R0||_F^2)      where L and R train; the first term where R alone does
    ||dW||_F^2 ~ lr^2 s^2 sum over the core's positions (i, j) of |L0 e_i|^2 |e_j^T R0|^2       where the core trains

Where L0 and R0 have orthogonal columns and rows, as singular vectors do, each term is exact; what is left out is how
the two terms of the first line agree in sign. With k = min(out, in) and singular values s_i of the weight:

    milora, pissa, random_components    lr s sqrt((out + in) sum s_i / s)      over the r chosen triplets
    mica                                lr s sqrt(in r)
    lora_xs                             lr s sqrt(r sum s_i^2)                 over the r chosen triplets
    svf                                 lr sqrt(sum s_i^2) = lr ||W||_F
    svft                                lr sqrt(positions of M)
    lora, rslora                        lr s sqrt(out r / 3)                   B = 0, A uniform in +-1/sqrt(in)
    full                                lr sqrt(out in)

DoRA's magnitude moves each row along itself by lr more: lr^2 out is added to the square.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from milora.linalg import SVD
from milora.methods.factors import Choice, Factors, Method

# Methods of PEFT that scale factors by vectors from zero. AdaLoRA's factors are small and train too, VeRA's are shared
# and random: the first step says little of the tenth.
UNPREDICTED = ("adalora", "vera")


def spectral_step(
    method: Method, choice: Choice, factors: Factors, shape: tuple[int, int], magnitude: bool = False
) -> float | None:
    """||dW||_F / lr of one weight under one of this room's methods.

    Args:
        method: which one.
        choice: its settings for this weight.
        factors: of this weight at the start.
        shape: (out, in).
        magnitude: whether DoRA's magnitude trains too.

    Returns:
        None where the start is not the base (`as_published`), and a change is more than what the steps made of it.
    """
    if choice.as_published:
        return None
    left = _squares(factors.L0, 0)  # (q,)
    right = torch.zeros_like(left) if factors.R0 is None else _squares(factors.R0, 1)  # (q,)
    core = method.core(len(left), choice)
    if core is not None:
        ones = torch.ones(core.size, dtype=left.dtype, device=left.device)
        square = float(left @ core.apply(ones, right, factors.indices))
    else:
        out, in_ = shape
        square = in_ * float(left.sum()) * ("R" in method.trains) + out * float(right.sum()) * ("L" in method.trains)
    return _with_magnitude(choice.scale * math.sqrt(square), shape, magnitude)


def pair_step(scale: float, B: Tensor, A: Tensor, magnitude: bool = False) -> float:  # B (out, r), A (r, in)
    """||dW||_F / lr of W + s B A with B and A trained, from both as they are now.

    Where one of them is zero, as LoRA's B, the other does not move yet, and its term is zero too.
    """
    shape = B.shape[0], A.shape[1]
    square = shape[1] * float(_squares(B, 0).sum()) + shape[0] * float(_squares(A, 1).sum())
    return _with_magnitude(scale * math.sqrt(square), shape, magnitude)


def lora_step(shape: tuple[int, int], r: int, scale: float, magnitude: bool = False) -> float:
    """||dW||_F / lr of LoRA (arXiv 2106.09685) as PEFT starts it, in expectation.

    B = 0 and A (r, in) is kaiming-uniform with a = sqrt(5): uniform in +-1/sqrt(in), so that E ||A||_F^2 = r / 3.
    """
    return _with_magnitude(scale * math.sqrt(shape[0] * r / 3), shape, magnitude)


def full_step(shape: tuple[int, int]) -> float:
    """||dW||_F / lr where the weight itself trains: sqrt(out in)."""
    return math.sqrt(shape[0] * shape[1])


def diagonal(S: Tensor, resolution: float = 0.0) -> SVD:  # (k,)
    """The decomposition of diag(S), which stands in for that of any weight with these singular values.

    `spectral_step` sees of the singular vectors only that they are orthonormal, so that all methods of a weight are
    predicted from its singular values.
    """
    eye = torch.eye(len(S), dtype=S.dtype, device=S.device)  # (k, k)
    return SVD(eye, S, eye, resolution)


def _with_magnitude(step: float, shape: tuple[int, int], magnitude: bool) -> float:
    return math.hypot(step, math.sqrt(shape[0])) if magnitude else step


def _squares(factor: Tensor, dim: int) -> Tensor:  # (a, b) -> (b,) or (a,)
    """The squared norms of a factor's columns (dim 0) or rows (dim 1), in float64."""
    return torch.linalg.vector_norm(factor.detach(), dim=dim, dtype=torch.float64).square()
