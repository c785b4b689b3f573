"""Make PEFT know the type SPECTRAL.

PEFT takes new methods only under names of its `PeftType` enum and offers third parties no way to add one. So one member
is appended to the enum, the way the enum's own metaclass would have (CPython 3.9 to 3.14), and the method is then
registered through PEFT's `register_peft_method`. Everything that depends on this stands in this file.
"""

from __future__ import annotations

import enum
from typing import Any

import peft
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType

NAME = "spectral"
PREFIX = "spectral_"


def add_peft_type() -> PeftType:
    """Append `PeftType.SPECTRAL` (once) and return it.

    Raises:
        ImportError: this PEFT keeps its types in a way that is not known here.
    """
    upper = NAME.upper()
    if upper not in PeftType.__members__:
        _append_member(PeftType, upper)
    try:
        member = PeftType(upper)
        known = member is PeftType[upper] and upper in [str(t.value) for t in PeftType]
    except (KeyError, ValueError):
        known = False
    if not known:
        raise ImportError(
            f"milora cannot register with peft {peft.__version__}, whose PeftType enum has changed; "
            "install peft>=0.21,<0.22"
        )
    return PeftType[upper]


def _append_member(enumeration: type[enum.Enum], name: str) -> None:
    member: Any = str.__new__(enumeration, name)  # pyright: ignore[reportArgumentType, reportCallIssue]
    member._name_ = name
    member._value_ = name
    member._sort_order_ = len(enumeration.__members__)
    member.__objclass__ = enumeration
    enumeration._member_names_.append(name)
    enumeration._member_map_[name] = member
    enumeration._value2member_map_[name] = member
    # EnumType.__setattr__ refuses to touch members; type's own does what the class body would have done.
    type.__setattr__(enumeration, name, member)


def register(config_cls: type, model_cls: type) -> None:
    """Register the SPECTRAL configuration and tuner with PEFT (once)."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if add_peft_type() not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME, config_cls=config_cls, model_cls=model_cls, prefix=PREFIX)
