"""PiSSA: train the principal singular components, freeze the rest (Meng et al., NeurIPS 2024, arXiv 2404.02948).

    A0 = (S_p/s)^1/2 V_p^T,   B0 = U_p (S_p/s)^1/2,   W_res = W - s B0 A0  frozen,   W' = W_res + s B A

The paper's B is our L, its A our R. Trainable numbers: r (out + in).
"""

from milora.linalg import Triplets
from milora.methods.factors import Choice, Factors, Method, chosen, split_sqrt


def factors(svd: Triplets, choice: Choice) -> Factors:
    """L0 = U_p (S_p/s)^1/2  (out, r),  R0 = (S_p/s)^1/2 V_p^T  (r, in)."""
    return split_sqrt(chosen(svd, choice, "top"), choice.scale)


METHOD = Method(
    name="pissa",
    title="PiSSA",
    equation="W' = W + s (L R - L0 R0),  L0 = U_p S_p^1/2,  R0 = S_p^1/2 V_p^T   (p: r largest)",
    paper="Meng et al., NeurIPS 2024, arXiv 2404.02948",
    trains=frozenset({"L", "R"}),
    factors=factors,
    components=("top",),
)
