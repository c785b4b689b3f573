"""Exports to LoRA: exact or truncated, refused where a named program would refuse them, the same in PEFT alone."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from adapters.steps import adapt, logits, train_steps
from milora.adapters.agreement import Witness
from milora.adapters.export import write_lora
from milora.adapters.gguf_lora import write_gguf_lora
from milora.adapters.limits import VLLM_RANKS, limits, refuse
from milora.adapters.truncate import total
from milora.errors import MiloraError
from milora.methods import METHODS


@pytest.fixture
def saved(base, ids, tmp_path):
    model = adapt(base(), "milora")
    train_steps(model, ids)
    model.save_pretrained(tmp_path / "own")
    return tmp_path / "own", logits(model, ids)


def test_a_rank_is_kept_to_and_its_error_is_told(base, ids, saved, tmp_path):
    differences = []
    for rank in (16, 8, 2):
        done = write_lora(saved[0], None, tmp_path / f"r{rank}", rank=rank)
        config = json.loads((tmp_path / f"r{rank}" / "adapter_config.json").read_text())
        assert (done.rank, config["r"], config["lora_alpha"]) == (rank, rank, rank)
        assert {t.shape[0] for n, t in load_file(done.path / "adapter_model.safetensors").items() if "lora_A" in n} == {
            rank
        }
        assert len(done.errors) == 14 and all(error.rank == 16 for error in done.errors)
        again = PeftModel.from_pretrained(base(), done.path)
        differences.append((total(done.errors), float((logits(again, ids) - saved[1]).abs().max())))
    errors = [error for error, _ in differences]
    assert errors[0] < 1e-6 < errors[1] < errors[2] < 1
    assert differences[0][1] < 2e-6 < differences[1][1] < differences[2][1]


def test_a_rank_over_the_adapters_own_is_padded_nowhere(saved, tmp_path):
    assert write_lora(saved[0], None, tmp_path / "lora", rank=100).rank <= 32  # k and v have 32 rows
    with pytest.raises(MiloraError, match="rank: got 0, allowed a whole number from 1 on"):
        write_lora(saved[0], None, tmp_path / "none", rank=0)
    assert not (tmp_path / "none").exists()


def test_a_plain_lora_is_truncated_too(base, ids, tmp_path):
    config = LoraConfig(r=8, use_rslora=True, target_modules=["q_proj", "up_proj"], alpha_pattern={"q_proj": 3})
    model = get_peft_model(base(), config)
    train_steps(model, ids)
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(MiloraError, match=r"LoraConfig, which PEFT loads as it is.*--rank"):
        write_lora(tmp_path / "theirs", None, tmp_path / "out")
    done = write_lora(tmp_path / "theirs", None, tmp_path / "out", rank=8)
    assert total(done.errors) < 1e-6
    fields = json.loads((done.path / "adapter_config.json").read_text())
    assert (fields["use_rslora"], fields["alpha_pattern"]) == (False, {})
    again = PeftModel.from_pretrained(base(), done.path)
    assert torch.allclose(logits(again, ids), logits(model, ids), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "readers", "said"),
    [
        (
            {"modules_to_save": ["lm_head"]},
            "vllm",
            r"vllm would refuse it: modules_to_save \(lm_head\); use --to merged",
        ),
        ({"modules_to_save": ["lm_head"]}, "llama.cpp", "llama.cpp would refuse it: modules_to_save"),
        ({"bias": "lora_only"}, "vllm", "vllm would refuse it: trained biases"),
        ({"bias": "all"}, "llama.cpp", "llama.cpp would refuse it: trained biases"),
        ({"use_dora": True}, "vllm", "vllm would refuse it: use_dora"),
        ({"rank_pattern": {"q_proj": 4}}, "vllm", "rank_pattern or alpha_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "llama.cpp", "rank_pattern or alpha_pattern"),
        ({"use_rslora": True}, "llama.cpp", "use_rslora, which it scales by alpha / r"),
        ({"r": 513}, "vllm", "rank 513 is over its largest max_lora_rank, 512; use --rank"),
        ({"rank_pattern": {"q_proj": 600}}, "vllm", "rank 600 is over"),
    ],
)
def test_what_a_program_refuses_is_named(settings, readers, said):
    found = limits(LoraConfig(target_modules=["q_proj"], **settings))
    with pytest.raises(MiloraError, match=said) as caught:
        refuse(found, [readers])
    assert "\n" not in str(caught.value)
    refuse(found, [])


def test_what_a_program_takes_is_not_refused():
    refuse(limits(LoraConfig(r=512, target_modules=["q_proj"])), ["vllm", "llama.cpp"])
    refuse(limits(LoraConfig(use_rslora=True, target_modules=["q_proj"])), ["vllm"])
    refuse(limits(LoraConfig(modules_to_save=["score"], target_modules=["q_proj"])), ["vllm"])
    assert limits(LoraConfig(r=16, target_modules=["q_proj"])) == []
    for rank, needed in ((17, 32), (32, 32), (33, 64), (300, 320), (512, 512)):
        (told,) = limits(LoraConfig(r=rank, target_modules=["q_proj"]))
        assert not told.fatal and f"--max-lora-rank {needed} " in str(told) and needed in VLLM_RANKS
    with pytest.raises(MiloraError, match=r"for: got 'ollama', allowed vllm, llama\.cpp"):
        refuse([], ["ollama"])


def test_a_refused_export_is_not_written(base, ids, tmp_path):
    model = adapt(base(), "milora", target_modules=["q_proj"], modules_to_save=["lm_head"])
    model.save_pretrained(tmp_path / "own")
    with pytest.raises(MiloraError, match="vllm would refuse it"):
        write_lora(tmp_path / "own", None, tmp_path / "out", readers=("vllm",))
    assert not (tmp_path / "out").exists()
    assert [limit.reader for limit in write_lora(tmp_path / "own", None, tmp_path / "out").limits] == [
        "vllm",
        "llama.cpp",
    ]


def test_the_agreement_sees_what_was_changed_after_writing(base, saved, tmp_path):
    done = write_lora(saved[0], None, tmp_path / "lora")
    model = base()
    whole = Witness(saved[0], model).compare(done.path, "lora")
    assert whole.largest < 2e-6 < whole.moved and "at most" in str(whole)
    weights = load_file(done.path / "adapter_model.safetensors")
    save_file({n: t * 1.1 for n, t in weights.items()}, done.path / "adapter_model.safetensors")
    changed = Witness(saved[0], model).compare(done.path, "lora")
    assert changed.largest > 1000 * whole.largest
    assert not any("lora" in name or "spectral" in name for name, _ in model.named_parameters())


def test_an_adapter_in_place_of_its_base_weights_is_checked_beside_the_base(base, ids, tiny_llama, tmp_path):
    model = adapt(base(), "svf", drop_base=True)
    train_steps(model, ids)
    model.save_pretrained(tmp_path / "own")
    done = write_lora(tmp_path / "own", tiny_llama, tmp_path / "lora")
    found = Witness(tmp_path / "own", base()).compare(done.path, "lora")
    assert found.largest < 2e-5 < 1e-3 < found.moved


def isolated(folder: Path) -> Path:
    """A copy of this environment's site-packages, by links, that lacks this package and runs no .pth file."""
    site = Path(torch.__file__).parents[1]
    folder.mkdir()
    for entry in site.iterdir():
        if "milora" not in entry.name and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


ALONE = """
import sys
sys.path.append(sys.argv[1])
try:
    import milora
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("this package can be imported")
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
base, ids, out = sys.argv[2], load_file(sys.argv[3])["ids"], {}
for adapter in sys.argv[5:]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    with torch.no_grad():
        out[adapter] = model(input_ids=ids).logits.contiguous()
assert not [name for name in sys.modules if name.split(".")[0] == "milora"]
save_file(out, sys.argv[4])
"""


def in_peft_alone(
    site: Path, base: Path, ids: torch.Tensor, adapters: list[Path], folder: Path
) -> dict[str, torch.Tensor]:
    """Logits of adapters in stock PEFT, in a process in whose environment this package is not."""
    save_file({"ids": ids}, folder / "ids.safetensors")
    (folder / "alone.py").write_text(ALONE)
    # -I: no PYTHONPATH, no user site; -S: no site-packages and no .pth files, which an editable install lives by.
    command = [sys.executable, "-I", "-S", folder / "alone.py", site, base, folder / "ids.safetensors"]
    done = subprocess.run(
        [str(part) for part in [*command, folder / "logits.safetensors", *adapters]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(folder / "logits.safetensors")


def check_in_peft_alone(model_folder, ids, tmp_path, tolerance, **settings):
    """Every method, exported, is itself in an environment without this package; the config is what vLLM takes."""
    own, exports = {}, []
    for method in sorted(METHODS):
        model = adapt(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), method, **settings)
        train_steps(model, ids, steps=2)
        model.save_pretrained(tmp_path / method)
        exports.append(write_lora(tmp_path / method, None, tmp_path / f"{method}-lora").path)
        own[str(exports[-1])] = logits(model, ids)
    alone = in_peft_alone(isolated(tmp_path / "site"), model_folder, ids, exports, tmp_path)
    assert alone.keys() == own.keys()
    differences = {name: float((alone[name] - own[name]).abs().max()) for name in own}
    print({Path(name).name: value for name, value in differences.items()})
    assert max(differences.values()) < tolerance
    for path in exports:
        fields = json.loads((path / "adapter_config.json").read_text())
        # What vLLM's PEFTHelper looks at, and llama.cpp's converter reads.
        assert not fields["modules_to_save"] and fields["bias"] == "none" and not fields["use_dora"]
        assert fields["init_lora_weights"] is True and not fields["use_rslora"]
        assert fields["lora_alpha"] == fields["r"] and not fields["rank_pattern"] and not fields["alpha_pattern"]
        for name, tensor in load_file(path / "adapter_model.safetensors").items():
            assert re.fullmatch(r"base_model\.model\.model\.layers\.\d+\.[\w.]+_proj\.lora_[AB]\.weight", name)
            assert tensor.shape[0 if ".lora_A." in name else 1] == fields["r"]


def test_exports_are_themselves_where_this_package_is_not(tiny_llama, ids, tmp_path):
    check_in_peft_alone(tiny_llama, ids, tmp_path, 2e-6)


@pytest.mark.slow
def test_exports_of_a_real_model_are_themselves_where_this_package_is_not(smollm2, tmp_path):
    ids = torch.randint(5, 40000, (1, 12), generator=torch.Generator().manual_seed(0))
    check_in_peft_alone(smollm2, ids, tmp_path, 1e-3, r=16, target_modules=["q_proj", "down_proj"])


def test_a_tied_head_is_refused_for_llama_cpp(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
    found = limits(LoraConfig(target_modules=["lm_head"]), ["lm_head"], tied_head="lm_head")
    assert [str(limit) for limit in found] == [
        "llama.cpp would refuse it: lm_head shares its weight with the embedding; leave it out"
    ]
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    model = adapt(LlamaForCausalLM(config), "milora", r=2, target_modules=["lm_head", "q_proj"])
    model.save_pretrained(tmp_path / "own")
    done = write_lora(tmp_path / "own", str(tmp_path / "base"), tmp_path / "out", check_base=True)
    assert [limit.reader for limit in done.limits] == ["llama.cpp"]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_with_a_magnitude_it_is_pefts_dora(base, ids, method, tmp_path):
    model = adapt(base(), method, magnitude=True)
    train_steps(model, ids)
    model.save_pretrained(tmp_path / "own")
    done = write_lora(tmp_path / "own", None, tmp_path / "dora")
    assert json.loads((done.path / "adapter_config.json").read_text())["use_dora"]
    again = PeftModel.from_pretrained(base(), done.path)
    assert all(type(config) is LoraConfig for config in again.peft_config.values())
    wanted = logits(model, ids)
    torch.testing.assert_close(logits(again, ids), wanted, atol=2e-5, rtol=1e-5)
    assert (wanted - logits(base(), ids)).abs().max() > 1e-2
    assert {limit.reader for limit in done.limits if limit.fatal} >= {"vllm", "llama.cpp"}
    with pytest.raises(MiloraError, match="vllm would refuse it: use_dora"):
        write_lora(tmp_path / "own", None, tmp_path / "served", readers=("vllm",))


def test_a_magnitude_is_not_truncated_nor_written_for_llama_cpp(base, ids, tiny_llama, tmp_path):
    model = adapt(base(), "milora", magnitude=True)
    model.save_pretrained(tmp_path / "own")
    with pytest.raises(MiloraError, match=r"--rank: .* has a magnitude"):
        write_lora(tmp_path / "own", None, tmp_path / "r2", rank=2)
    with pytest.raises(MiloraError, match=r"gguf-lora: llama\.cpp would refuse it: the adapter has a magnitude"):
        write_gguf_lora(tmp_path / "own", tiny_llama, tmp_path / "a.gguf")


def test_rows_of_zeros_have_no_quotient(base, ids, tmp_path):
    def written(name, train):
        start = base()
        with torch.no_grad():
            start.model.layers[0].self_attn.q_proj.weight[3] = 0
        model = adapt(start, "milora", magnitude=True)
        if train:
            train_steps(model, ids)
        model.save_pretrained(tmp_path / name)
        again = base()
        with torch.no_grad():
            again.model.layers[0].self_attn.q_proj.weight[3] = 0
        return logits(model, ids), again, write_lora(tmp_path / name, None, tmp_path / f"{name}-dora").path

    wanted, again, folder = written("trained", True)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(again, folder), ids), wanted, atol=2e-5, rtol=1e-5)
    with pytest.raises(MiloraError, match="a row of its weight is zero, allowed for it: --to merged"):
        written("start", False)
