"""Tensors in, tensors out: decompositions of one weight matrix. Knows no models, prints nothing, keeps no state."""

from milora.linalg.svd import SVD, svd

__all__ = ["SVD", "svd"]
