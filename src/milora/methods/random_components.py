"""Random and central components: the controls beside MiLoRA and PiSSA (MiLoRA, arXiv 2406.09044, Table 4).

    L0 = U_c (S_c/s)^1/2,   R0 = (S_c/s)^1/2 V_c^T,   c = r indices of 1..k

`components="random"` draws c without replacement from the generator and sorts it; `components="middle"` takes the r
central ones (the mode "mid" of the authors' code). Trainable numbers: r (out + in).
"""

import torch

from milora.errors import MiloraError
from milora.linalg import Triplets
from milora.methods.factors import Choice, Factors, Method, split_sqrt


def factors(svd: Triplets, choice: Choice) -> Factors:
    """L0 = U_c (S_c/s)^1/2  (out, r),  R0 = (S_c/s)^1/2 V_c^T  (r, in)."""
    if choice.components == "middle":
        return split_sqrt(svd.middle(choice.r), choice.scale)
    if choice.components != "random":
        raise MiloraError(f"components: got {choice.components!r}, allowed 'random', 'middle'")
    c = torch.randperm(len(svd), generator=choice.generator)[: choice.r].sort().values  # (r,)
    return split_sqrt(svd.take(c), choice.scale)


METHOD = Method(
    name="random_components",
    title="Random (or central) components",
    equation="W' = W + s (L R - L0 R0),  L0 = U_c S_c^1/2,  R0 = S_c^1/2 V_c^T   (c: r drawn with a seed, or central)",
    paper="Wang et al., NAACL 2025, arXiv 2406.09044, Table 4",
    trains=frozenset({"L", "R"}),
    factors=factors,
)
