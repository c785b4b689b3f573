"""LoRA-XS: an r x r matrix between frozen singular vectors (Balazy et al., arXiv 2405.17604).

    h = x W + x A R B  (row vectors):   A = U_p S_p,  B = V_p^T of the (in, out) matrix, frozen;   R (r, r) trained

For W (out, in), as layers store it, this is W' = W + s U_p R S_p V_p^T: the singular values stand on the side of the
input, and the gradient of R with them. L0 = U_p, R0 = S_p V_p^T, and the paper's R is our C.

R starts at N(0, 1e-5^2) in the paper. C0 is subtracted here, W' = W + s L0 (C - C0) R0, so that the start is the base;
C - C0 trains, with the gradient of R. `as_published` keeps R = C as it was drawn. Trainable numbers: r^2.
"""

import torch

from milora.linalg import Triplets
from milora.methods.core import Core, Dense
from milora.methods.factors import NAMED, Choice, Factors, Method, chosen

SIGMA = 1e-5  # of R's start


def factors(svd: Triplets, choice: Choice) -> Factors:
    """L0 = U_p  (out, r),  R0 = S_p V_p^T  (r, in)."""
    part = chosen(svd, choice, "top")
    C = torch.randn(choice.r**2, generator=choice.generator) * SIGMA if choice.as_published else None
    return Factors(part.U, part.S[:, None] * part.Vh, C=C)


def core(q: int, choice: Choice) -> Core:
    """C (r, r)."""
    return Dense(q)


METHOD = Method(
    name="lora_xs",
    title="LoRA-XS",
    equation="W' = W + s L0 (C - C0) R0,  L0 = U_p,  R0 = S_p V_p^T,  C (r, r)   (p: r largest)",
    paper="Balazy et al., arXiv 2405.17604",
    trains=frozenset({"C"}),
    factors=factors,
    components=(*NAMED, "indices"),
    core=core,
    own=frozenset({"as_published"}),
)
