"""Data sets of every form the field uses, turned into the examples that the trainer takes."""

from milora.data.encyclopedia import Encyclopedia, make_encyclopedia
from milora.data.formats import FORMATS
from milora.data.load import TEMPLATES, load_examples
from milora.data.split import data_hash, split_validation

__all__ = [
    "FORMATS",
    "TEMPLATES",
    "Encyclopedia",
    "data_hash",
    "load_examples",
    "make_encyclopedia",
    "split_validation",
]
