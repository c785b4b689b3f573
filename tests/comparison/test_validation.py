"""Validation loss row by row against transformers' own loss."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from milora.comparison.validation import mean_loss, row_losses
from milora.errors import MiloraError

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]},
    {"input_ids": [9, 8], "labels": [-100, 8]},
    {"input_ids": [40, 41, 42], "labels": [40, 41, 42]},
]


@pytest.fixture(scope="module")
def model(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_each_row_is_its_own_loss_whatever_it_is_padded_with(model, batch_size):
    model.train()
    found = row_losses(model, Dataset.from_list(ROWS), pad_token_id=0, batch_size=batch_size)
    assert model.training
    model.eval()
    assert [row["tokens"] for row in found] == [3, 1, 2]  # the first token has nothing before it
    for row, losses in zip(ROWS, found, strict=True):
        batch = {name: torch.tensor([values]) for name, values in row.items()}
        with torch.no_grad():
            assert losses["loss"] / losses["tokens"] == pytest.approx(float(model(**batch).loss), rel=1e-5)
    assert mean_loss(found) == pytest.approx(sum(row["loss"] for row in found) / 6)


def test_a_loss_that_is_no_number_is_an_error(model):
    with torch.no_grad():
        before = model.lm_head.weight[0].clone()
        model.lm_head.weight[0] = float("nan")
    with pytest.raises(MiloraError, match="the loss of a row is not finite"):
        row_losses(model, Dataset.from_list(ROWS), pad_token_id=0)
    with torch.no_grad():
        model.lm_head.weight[0] = before
