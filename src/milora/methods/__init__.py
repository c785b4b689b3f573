"""What a method is: which singular triplets it takes, how they are split over the factors, which factors train.

One file per method; each holds one `METHOD`, and adding the file is all that registering it takes.
"""

from milora.methods.factors import Choice, Factors, Method, split_sqrt
from milora.methods.registry import METHODS, get_method

__all__ = ["METHODS", "Choice", "Factors", "Method", "get_method", "split_sqrt"]
