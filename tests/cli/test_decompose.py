"""milora decompose and milora spectrum, from the command line."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from milora.cli.app import main
from milora.decompositions import default_store, inventory

NAMES = [
    f"model.layers.{i}.{module}"
    for i in (0, 1)
    for module in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    )
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def call(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([*(str(a) for a in arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def held() -> int:
    return len(list(inventory.entries(default_store().folder)))


def test_a_dry_run_lists_and_computes_nothing(tiny_llama: Path, capsys):
    record = call(capsys, "decompose", tiny_llama, "--rank", 4, "--dry-run")
    assert [row["name"] for row in record["matrices"]] == NAMES
    first = {"name": NAMES[0], "out": 64, "in": 64, "dtype": "float32", "store_bytes": (4 * 128 + 4) * 4}
    assert record["matrices"][0] == first
    assert record["store_bytes"] == sum(row["store_bytes"] for row in record["matrices"])
    assert held() == 0
    assert main(["decompose", str(tiny_llama), "--rank", "4", "--dry-run"]) == 0
    assert "14 matrices" in capsys.readouterr().out
    assert main(["decompose", str(tiny_llama), "--rank", "4", "--dry-run", "--quiet"]) == 0
    assert capsys.readouterr().out.split() == NAMES


def test_decompose_says_what_it_did(tiny_llama: Path, cache: Path, capsys):
    record = call(capsys, "decompose", tiny_llama, "--rank", 4, "--targets", "q_proj,v_proj", "--device", "cpu")
    asked = {"part": "bottom", "rank": 4, "device": "cpu", "strict": False, "found_by": "architecture"}
    assert record.items() >= (asked | {"matrices": 4, "computed": 4, "found": 0, "failed": []}).items()
    assert record["store"] == str(cache / "decompositions") and held() == 4
    numbers = ("seconds", "matrices_per_second", "peak_memory_bytes", "memory_before_bytes", "largest_matrix_bytes")
    assert all(record[name] > 0 for name in numbers)
    assert call(capsys, "decompose", tiny_llama, "--part", "all", "--rank", 4, "--targets", "q_proj")["computed"] == 2
    assert held() == 6
    assert main(["decompose", str(tiny_llama), "--rank", "4"]) == 0
    printed = capsys.readouterr().out
    assert "found in the store" in printed and "peak memory of a process" in printed


def test_a_matrix_that_fails_gives_the_list_and_exit_code_2(tiny_llama: Path, tmp_path: Path, capsys):
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(tiny_llama, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors[f"{NAMES[5]}.weight"][0, 0] = float("inf")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    record = call(capsys, "decompose", model, "--rank", 4, code=2)
    assert [f["name"] for f in record["failed"]] == [NAMES[5]] and record["computed"] == held() == 13
    assert main(["decompose", str(model), "--rank", "4"]) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"1 of 14 matrices failed: {NAMES[5]}" in errors[0]
    assert "found in the store" in printed.out


def test_spectrum_in_json_and_for_people(tiny_llama: Path, capsys):
    record = call(capsys, "spectrum", tiny_llama, "--rank", 4, "--interval", 0, 0.1)
    assert record["interval"] == [0.0, 0.1] and record["rank"] == 4 and record["matrices"] == 14
    assert [layer["name"] for layer in record["layers"]] == NAMES
    assert [layer["layer"] for layer in record["layers"]] == [0] * 7 + [1] * 7
    assert list(record["module_types"]) == [name.rsplit(".", 1)[1] for name in NAMES[:7]]
    measured = record["module_types"]["q_proj"]
    assert measured["matrices"] == 2 and measured["condition"]["min"] <= measured["condition"]["max"]
    assert held() == 14
    assert main(["spectrum", str(tiny_llama), "--rank", "4"]) == 0
    printed = capsys.readouterr().out
    assert (
        "14 matrices" in printed
        and "\nq_proj " in printed
        and "condition" in printed
        and NAMES[0] not in printed.replace("\n", "")
    )
    assert main(["spectrum", str(tiny_llama), "--rank", "4", "--layers", "--targets", r".*\.1\..*"]) == 0
    assert "layers.1" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs the extra `report`")
def test_spectrum_draws(tiny_llama: Path, tmp_path: Path, capsys):
    picture = tmp_path / "s.png"
    assert call(capsys, "spectrum", tiny_llama, "--rank", 4, "--output", picture)["picture"] == str(picture)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    again = ["spectrum", str(tiny_llama), "--rank", "4", "--output", str(picture), "--quiet"]
    assert main(again) == 2 and "exists, allowed a new one, or --overwrite" in capsys.readouterr().err
    assert main([*again, "--overwrite"]) == 0
    assert capsys.readouterr().out.strip() == str(picture)


@pytest.mark.parametrize("verb", ["decompose", "spectrum"])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rank", "33"], "rank: got 33, over the smaller side of 4 of 14 matrices, the first"),
        (["--rank", "0"], "rank: got 0, allowed 1 or more"),
        (["--targets", "qproj"], "'qproj' matches no linear module, allowed e.g. q_proj"),
        (["--targets", "q_proj("], "no regular expression"),
        (["--procs", "0"], "procs: got 0, allowed 1 or more"),
        (["--device", "abacus"], "device: got 'abacus'"),
        (["--gguf_file", "nosuch.gguf"], "nosuch.gguf does not exist"),
        (["--rank", "many"], "Invalid value"),
    ],
)
def test_a_wrong_flag_is_one_line(tiny_llama: Path, capsys, verb: str, flags: list[str], said: str):
    small = [] if "--rank" in flags else ["--rank", "4"]
    refused([verb, str(tiny_llama), *small, *flags], said, capsys)
    assert held() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["decompose", "MODEL", "--part", "middle"], "part: got 'middle', allowed bottom, top, all, full"),
        (["decompose", "MODEL", "--rank", "4", "--no-store"], "store: it is switched off"),
        (["spectrum", "MODEL", "--rank", "4", "--interval", "1.1", "0.1"], "interval: got 1.1 to 0.1"),
        (["spectrum", "MODEL", "--rank", "4", "--output", "s.jpg"], "output: got 's.jpg', allowed"),
        (["decompose", "/no/such/folder"], "does not exist or is no folder"),
        (["spectrum", "nosuch-owner/nosuch-model"], "the hub cannot be reached"),
        (["decompose"], "Missing argument"),
    ],
)
def test_a_wrong_call_is_one_line(tiny_llama: Path, capsys, arguments: list[str], said: str):
    refused([str(tiny_llama) if a == "MODEL" else a for a in arguments], said, capsys)


def test_a_folder_without_weights_is_one_line(tiny_llama: Path, tmp_path: Path, capsys):
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    (model / "model.safetensors").unlink()
    for verb in ("decompose", "spectrum"):
        refused([verb, str(model), "--rank", "4"], "holds no weights", capsys)


def refused(arguments: list[str], said: str, capsys) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err
    assert len(printed.err.splitlines()) == 1 and printed.err.startswith("error: ")
