"""Tensors in, tensors out: decompositions of one weight matrix. Knows no models, prints nothing, keeps no state."""

from milora.linalg.certificate import Certificate
from milora.linalg.engine import VERSION, Decomposition, bottom, full, take, top
from milora.linalg.svd import SVD, Triplets

__all__ = ["SVD", "VERSION", "Certificate", "Decomposition", "Triplets", "bottom", "full", "take", "top"]
