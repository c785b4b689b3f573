"""Adapt a small model and take a few real training steps."""

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from milora.adapters import SpectralConfig


def adapt(model: nn.Module, method: str, **settings) -> PeftModel:
    """Adapt all linear layers, r = 8, dropout 0.3."""
    arguments = {"r": 8, "lora_dropout": 0.3, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    return get_peft_model(model, SpectralConfig(method=method, **arguments))


def train_steps(model: PeftModel, ids: torch.Tensor, steps: int = 3, lr: float = 5e-3) -> None:
    """A few AdamW steps on the ids as their own labels, then eval mode."""
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def sgd_steps(model: nn.Module, ids: torch.Tensor, steps: int = 4, lr: float = 0.5) -> None:
    """Steps whose path does not depend on the signs of singular vectors."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits without gradients."""
    with torch.no_grad():
        return model(input_ids=ids).logits
