"""Whichever of milora and PEFT is imported first, PEFT knows the type; and milora alone imports neither."""

import subprocess
import sys

ALONE = "import milora, sys; assert not {'peft', 'torch', 'transformers'} & set(sys.modules)"
ORDERS = [
    "import milora, peft; assert peft.PeftType('SPECTRAL') is peft.PeftType.SPECTRAL",
    "import peft, milora; assert 'SPECTRAL' in [t.value for t in peft.PeftType]",
    "from milora import SpectralConfig; assert SpectralConfig(r=4).peft_type == 'SPECTRAL'",
    "import milora, importlib.util as u; u.find_spec('peft'); import peft; assert 'SPECTRAL' in [*peft.PeftType]",
    "import milora, transformers.utils as t; t.is_peft_available(); import peft; peft.PeftType('SPECTRAL')",
    "import milora, trl; from trl import SFTTrainer; import peft; peft.PeftType('SPECTRAL')",
    "import milora, peft, pickle; t = peft.PeftType.SPECTRAL; assert pickle.loads(pickle.dumps(t)) is t",
]
# What the imports cost is neither's: it is paid once, and each order is tried in a process of its own from there.
EACH = """
import contextlib, os, sys, traceback
import torch, transformers.modeling_utils, transformers.generation
for name in ("bitsandbytes", "torchao"):
    with contextlib.suppress(ImportError):
        __import__(name)
assert not {"peft", "milora", "trl"} & set(sys.modules)
failed = []
for code in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            exec(code, {})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(code)
sys.exit("\\n".join(failed) or 0)
"""


def failure(*arguments: str) -> str:
    """What a fresh process that fails says; nothing of one that does not."""
    done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True)
    return f"exit code {done.returncode}: {done.stderr[-1500:]}" if done.returncode else ""


def test_alone_it_imports_neither():
    assert failure(ALONE) == ""


def test_registration_in_any_order_of_imports():
    assert failure(EACH, *ORDERS) == ""
