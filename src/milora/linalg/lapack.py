"""Any part of a weight, by LAPACK's full decomposition (the GPU library's on a GPU): the last resort, and `full`."""

from __future__ import annotations

import torch
from torch import Tensor

from milora.linalg.parts import Part


def part(A: Tensor, indices: Tensor, dtype: torch.dtype) -> Part:  # A (m, n), m >= n; indices (r,) rising
    """The triplets at `indices`, computed in `dtype`."""
    U, S, Vh = torch.linalg.svd(A.to(dtype), full_matrices=False)
    i = indices.to(A.device)
    U, S, V = (x.to(torch.float64) for x in (U[:, i], S[i], Vh[i].T))
    return Part(U, S, V, f"lapack-{str(dtype).removeprefix('torch.')}")
