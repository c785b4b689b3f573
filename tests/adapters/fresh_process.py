"""Logits of a saved adapter in a process of its own, in which every decomposition raises.

python fresh_process.py BASE ADAPTER DTYPE IDS OUTPUT [QUANTIZATION]
"""

import sys


def main(base: str, adapter: str, dtype: str, ids_file: str, output: str, quantization: str = "") -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    import milora  # noqa: F401  registers the type

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a decomposition was run")

    torch.linalg.svd = torch.svd_lowrank = torch.linalg.eigh = refuse
    if quantization:
        from milora.models.load import load_model

        model = load_model(base, dtype=dtype, device="cpu", quantization=quantization)
    else:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        save_file({"logits": model(input_ids=load_file(ids_file)["ids"]).logits.contiguous()}, output)


main(*sys.argv[1:])
