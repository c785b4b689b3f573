"""Decompositions that are computed once: kept by their weight's values, shared by every run, process and rank."""

from milora.decompositions.claims import Busy, shared_out
from milora.decompositions.part import Part
from milora.decompositions.store import Store, StoredDecomposition, default_store, using
from milora.models.digest import Digest, weight_digest

__all__ = [
    "Busy",
    "Digest",
    "Part",
    "Store",
    "StoredDecomposition",
    "default_store",
    "shared_out",
    "using",
    "weight_digest",
]
