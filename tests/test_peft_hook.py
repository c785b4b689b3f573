"""Whichever of milora and PEFT is imported first, PEFT knows the type; and milora alone imports neither."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "code",
    [
        "import milora, peft; assert peft.PeftType('SPECTRAL') is peft.PeftType.SPECTRAL",
        "import peft, milora; assert 'SPECTRAL' in [t.value for t in peft.PeftType]",
        "from milora import SpectralConfig; assert SpectralConfig(r=4).peft_type == 'SPECTRAL'",
        "import milora, sys; assert not {'peft', 'torch', 'transformers'} & set(sys.modules)",
        "import milora, importlib.util as u; u.find_spec('peft'); import peft; assert 'SPECTRAL' in [*peft.PeftType]",
        "import milora, transformers.utils as t; t.is_peft_available(); import peft; peft.PeftType('SPECTRAL')",
        "import milora, trl; from trl import SFTTrainer; import peft; peft.PeftType('SPECTRAL')",
        "import milora, peft, pickle; t = peft.PeftType.SPECTRAL; assert pickle.loads(pickle.dumps(t)) is t",
    ],
)
def test_registration(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
