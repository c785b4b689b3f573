"""What a method is: which singular triplets it takes, how they are split over the factors, which factors train.

One file per method; each holds one `METHOD`, and adding the file is all that registering it takes.
"""

from milora.methods.bracket import Bracket, magnitude_quotient, row_norms
from milora.methods.factors import NAMED, Choice, Factors, Method, chosen, split_sqrt
from milora.methods.registry import METHODS, get_method

__all__ = [
    "METHODS",
    "NAMED",
    "Bracket",
    "Choice",
    "Factors",
    "Method",
    "chosen",
    "get_method",
    "magnitude_quotient",
    "row_norms",
    "split_sqrt",
]
