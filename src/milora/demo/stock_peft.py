"""Logits of an exported adapter in stock PEFT, in a process in which this package cannot be imported.

    python stock_peft.py BASE ADAPTER IDS OUTPUT

IDS is a safetensors file with `ids` (batch, tokens); OUTPUT gets `logits` (batch, tokens, vocabulary), float32. It is
run as a script by its path, so that nothing of this package is imported on the way either.
"""

import sys


def main(base: str, adapter: str, ids_file: str, output: str) -> None:
    """Load the base and the adapter with PEFT alone and write the logits."""
    sys.modules["milora"] = None  # type: ignore[assignment]  # any `import milora` fails from here on
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    ids = load_file(ids_file)["ids"]  # (batch, tokens)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    with torch.no_grad():
        save_file({"logits": model(input_ids=ids).logits.float().contiguous()}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
