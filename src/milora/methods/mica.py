"""MiCA: minor left vectors frozen, the other factor trained from zero (Ruediger & Raschka, arXiv 2604.01694).

    B = U_m  (out, r) frozen,   A = 0  (r, in) trained,   W' = W + s B A

The paper's B is our L0, its A our R. The change of the output lies in the span of the minor left vectors. The paper's
controls take other columns of U: `components="top"` or "random". Trainable numbers: r in.
"""

from milora.linalg import Triplets
from milora.methods.factors import NAMED, Choice, Factors, Method, chosen


def factors(svd: Triplets, choice: Choice) -> Factors:
    """L0 = U_m  (out, r),  R0 = 0."""
    return Factors(chosen(svd, choice, "bottom").U, None)


METHOD = Method(
    name="mica",
    title="MiCA",
    equation="W' = W + s L0 R,  L0 = U_m,  R = 0 at the start   (m: r smallest)",
    paper="Ruediger & Raschka, arXiv 2604.01694",
    trains=frozenset({"R"}),
    factors=factors,
    components=(*NAMED, "indices"),
)
