"""Random, central or named components: the controls beside MiLoRA and PiSSA (MiLoRA, arXiv 2406.09044, Table 4).

    L0 = U_c (S_c/s)^1/2,   R0 = (S_c/s)^1/2 V_c^T,   c = r indices of 1..k

`components="random"` draws c without replacement from the generator and sorts it; "middle" takes the r central ones
(the mode "mid" of the authors' code); r indices are taken as they are. Trainable numbers: r (out + in).
"""

from milora.linalg import Triplets
from milora.methods.factors import Choice, Factors, Method, chosen, split_sqrt


def factors(svd: Triplets, choice: Choice) -> Factors:
    """L0 = U_c (S_c/s)^1/2  (out, r),  R0 = (S_c/s)^1/2 V_c^T  (r, in)."""
    return split_sqrt(chosen(svd, choice, "random"), choice.scale)


METHOD = Method(
    name="random_components",
    title="Random, central or named components",
    equation="W' = W + s (L R - L0 R0),  L0 = U_c S_c^1/2,  R0 = S_c^1/2 V_c^T   (c: r drawn, central or named)",
    paper="Wang et al., NAACL 2025, arXiv 2406.09044, Table 4",
    trains=frozenset({"L", "R"}),
    factors=factors,
    components=("random", "middle", "indices"),
)
