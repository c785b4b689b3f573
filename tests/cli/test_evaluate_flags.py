"""Flags of `milora eval` that are read by the command line itself."""

import pytest

from milora.cli.evaluate import _pairs
from milora.errors import MiloraError


def test_generation_settings_are_values_by_name():
    assert _pairs("num_beams=4,do_sample=false,temperature=0.1") == {
        "num_beams": 4,
        "do_sample": False,
        "temperature": 0.1,
    }
    assert _pairs(None) is None


@pytest.mark.parametrize("text", ["num_beams", "num_beams=4,", "4=num_beams"])
def test_what_is_no_pair_is_named(text):
    with pytest.raises(MiloraError, match=r"--gen_kwargs: got .*allowed name=value pairs"):
        _pairs(text)
