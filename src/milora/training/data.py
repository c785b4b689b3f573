"""The rows of a recipe, read, checked and tokenised, before any model is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from rich.console import Console

from milora.data import data_hash, load_examples, split_validation
from milora.data.pictures import picture_folder
from milora.models.load import load_config
from milora.models.pictures import Pictures
from milora.recipes.schema import Recipe
from milora.training.lengths import Lengths
from milora.training.masking import tokenise
from milora.training.pictures import located


@dataclass
class Data:
    """Token ids and labels to train and to validate on, and what is worth knowing about them."""

    train: Dataset
    validation: Dataset | None
    lengths: dict[str, Lengths]  # by data set, for provenance
    sha256: str


def load_data(recipe: Recipe, tokenizer: Any, console: Console, pictures: Pictures | None = None) -> Data:
    """The training and validation rows of a recipe; what is out of the ordinary is said on the console.

    Args:
        recipe: names the data sets.
        tokenizer: of the model.
        console: where remarks on the rows go.
        pictures: how the model takes pictures; None where it takes none.

    Raises:
        MiloraError: as `milora.data.load_examples` and `tokenise`.
    """
    config = load_config(
        recipe.model_name_or_path, trust_remote_code=recipe.trust_remote_code, gguf_file=recipe.gguf_file
    )
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    lengths: dict[str, Lengths] = {}

    def read(key: str, dataset: str, split: str, limit: int | None) -> tuple[Dataset, Dataset]:
        examples = _examples(recipe, dataset, split, limit)
        # Before validation rows are split off, so that an error can number a row among all that were drawn.
        rows, lengths[key] = tokenise(
            examples,
            tokenizer,
            loss_on=recipe.loss_on,
            max_length=recipe.max_length,
            min_length=recipe.min_length,
            overlong=recipe.overlong,
            context=context,
            name=key,
            pictures=pictures,
        )
        for remark in lengths[key].remarks(recipe.overlong, context):
            console.print(f"{key}: {remark}", style="yellow", highlight=False)
        return examples, located(rows, picture_folder(dataset, recipe.image_folder))

    with console.status(f"reading {recipe.dataset}"):
        examples, rows = read("dataset", recipe.dataset, recipe.dataset_split, recipe.dataset_limit)
        if recipe.eval_dataset:
            validation = read("eval_dataset", recipe.eval_dataset, recipe.eval_split, None)[1]
            validation = validation.select(range(min(len(validation), recipe.eval_dataset_limit or len(validation))))
        else:
            rows, validation = split_validation(rows, recipe.val_set_size, recipe.seed)
        return Data(rows, validation, lengths, data_hash(examples))


def _examples(recipe: Recipe, dataset: str, split: str, limit: int | None) -> Dataset:
    return load_examples(
        dataset,
        format=recipe.dataset_format,
        split=split,
        template=recipe.prompt_template,
        limit=limit,
        seed=recipe.seed,
        empty_rows=recipe.empty_rows,
        image_folder=recipe.image_folder,
    )
