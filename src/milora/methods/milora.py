"""MiLoRA: train the minor singular components, keep the principal ones (Wang et al., NAACL 2025, arXiv 2406.09044).

Equations 3 to 5, with k = min(out, in):

    W = W_p + W_m,   W_p = sum_{i <= k-r} s_i u_i v_i^T  frozen
    W_m = U_m S_m V_m^T = (U_m S_m^1/2) (S_m^1/2 V_m^T) = B A     both trained
    W' = W_p + s B A

The paper's B is our L, its A our R. S_m is divided by s before the root, so that s B A = W_m for every alpha.
Trainable numbers: r (out + in).
"""

from milora.linalg import Triplets
from milora.methods.factors import Choice, Factors, Method, chosen, split_sqrt


def factors(svd: Triplets, choice: Choice) -> Factors:
    """L0 = U_m (S_m/s)^1/2  (out, r),  R0 = (S_m/s)^1/2 V_m^T  (r, in)."""
    return split_sqrt(chosen(svd, choice, "bottom"), choice.scale)


METHOD = Method(
    name="milora",
    title="MiLoRA",
    equation="W' = W + s (L R - L0 R0),  L0 = U_m S_m^1/2,  R0 = S_m^1/2 V_m^T   (m: r smallest)",
    paper="Wang et al., NAACL 2025, arXiv 2406.09044, eq. 3-5",
    trains=frozenset({"L", "R"}),
    factors=factors,
    components=("bottom",),
)
