"""Adapter folders that are broken, on purpose or not: loaded or refused in one line, without a crash or a hang."""

import json
import shutil
import struct
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from adapters.steps import adapt
from milora.adapters import SpectralConfig, load_adapter
from milora.adapters.agreement import shared_copy
from milora.adapters.export import write_lora
from milora.adapters.saved_config import _TYPES
from milora.cli.app import main
from milora.errors import MiloraError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DEEP = "[" * 100_000 + "]" * 100_000


class Specimen:
    """A tiny base, a whole adapter of it (of this package, or PEFT's LoRA), and a folder for damaged copies."""

    def __init__(self, root: Path, kind: str = "milora"):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=False,
        )  # fmt: skip
        self.base = LlamaForCausalLM(config)
        self.base.save_pretrained(root / "base")
        settings = {"r": 2, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}
        if kind == "lora":
            adapted = get_peft_model(shared_copy(self.base), LoraConfig(task_type="CAUSAL_LM", **settings))
        else:
            adapted = adapt(shared_copy(self.base), kind, **settings)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        adapted.save_pretrained(root / "whole")
        self.config = (root / "whole" / CONFIG).read_bytes()
        self.weights = (root / "whole" / WEIGHTS).read_bytes()
        self.root, self.folder = root, root / "damaged"
        self.folder.mkdir()

    def header(self) -> dict:
        return json.loads(self.weights[8 : 8 + struct.unpack("<Q", self.weights[:8])[0]])

    def data(self) -> bytes:
        return self.weights[8 + struct.unpack("<Q", self.weights[:8])[0] :]

    def with_header(self, header: dict | str | bytes, data: bytes | None = None) -> bytes:
        text = header if isinstance(header, str | bytes) else json.dumps(header)
        text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        return struct.pack("<Q", len(text)) + text + (self.data() if data is None else data)

    def write(self, config: bytes | None = None, weights: bytes | None = None) -> Path:
        (self.folder / CONFIG).write_bytes(self.config if config is None else config)
        (self.folder / WEIGHTS).write_bytes(self.weights if weights is None else weights)
        return self.folder


@pytest.fixture(scope="module")
def specimen(tmp_path_factory) -> Specimen:
    return Specimen(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="module")
def specimens(specimen, tmp_path_factory) -> list[Specimen]:
    return [specimen, Specimen(tmp_path_factory.mktemp("lora"), "lora")]


def outcome(specimen: Specimen, config: bytes | None = None, weights: bytes | None = None, rank: int = 2) -> str:
    """Load and export a damaged copy: nothing where both succeed, else the one line of a refusal."""
    folder, said = specimen.write(config, weights), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for use in (
            lambda: load_adapter(shared_copy(specimen.base), folder),
            lambda: write_lora(folder, None, specimen.root / "lora", rank=rank, overwrite=True),
        ):
            try:
                use()
            except MiloraError as error:
                said.append(str(error))
                assert said[-1] and "\n" not in said[-1] and len(said[-1]) < 2000
    return "; ".join(said)


def test_a_whole_adapter_passes(specimens):
    assert [outcome(specimen) for specimen in specimens] == ["", ""]


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.spectral_L0"


def renamed(specimen, name):
    header = specimen.header()
    header[name] = header.pop(FIRST)
    return specimen.with_header(header)


def changed(specimen, **fields):
    header = specimen.header()
    header[FIRST] |= fields
    return specimen.with_header(header)


def overlapping(specimen):
    header = specimen.header()
    other = next(n for n in header if n not in (FIRST, "__metadata__") and header[n]["shape"] == header[FIRST]["shape"])
    header[FIRST]["data_offsets"] = header[other]["data_offsets"]
    return specimen.with_header(header)


def with_nan(specimen):
    return specimen.with_header(specimen.header(), b"\x00\x00\xc0\x7f" + specimen.data()[4:])


def extra(specimen):
    header, data = specimen.header(), specimen.data()
    header["base_model.model.extra"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    return specimen.with_header(header, data + b"\0" * 4)


def missing(specimen):
    header, data = specimen.header(), specimen.data()
    last = max(header, key=lambda n: header[n].get("data_offsets", [0])[0])
    start, _ = header.pop(last)["data_offsets"]
    return specimen.with_header(header, data[:start])


BROKEN_WEIGHTS = {
    "nothing in it": (lambda s: b"", "broken"),
    "header length over the file": (lambda s: struct.pack("<Q", 1 << 62) + s.weights[8:], "broken"),
    "header length zero": (lambda s: struct.pack("<Q", 0) + s.weights[8:], "broken"),
    "truncated": (lambda s: s.weights[:-5], "broken"),
    "header not UTF-8": (lambda s: s.with_header(b"\xff\xfe{}"), "broken"),
    "header 100,000 deep": (lambda s: s.with_header(DEEP), "broken"),
    "overlapping tensors": (overlapping, "broken"),
    "unknown dtype": (lambda s: changed(s, dtype="F33"), "broken"),
    "shape over its bytes": (lambda s: changed(s, shape=[8, 3]), "broken"),
    "shape of another factor": (lambda s: changed(s, shape=[2, 8]), r"\(8, 2\)|size mismatch|\(2, 8\)"),
    "shape without end": (lambda s: changed(s, shape=[1 << 62, 1 << 62]), "broken"),
    "no shape": (lambda s: changed(s, shape=[16]), r"size mismatch|\(16,\)"),
    "NaN": (with_nan, "NaN or Inf"),
    "one too many": (extra, "extra"),
    "one too few": (missing, "lacks|got the factors"),
    "a path upwards": (lambda s: renamed(s, "../../../etc/passwd"), "etc/passwd.*allowed"),
    "an absolute path": (lambda s: renamed(s, "/etc/passwd"), "/etc/passwd.*allowed"),
    "a NUL in a name": (lambda s: renamed(s, "base_model.model.a\0b.spectral_L0"), "allowed"),
    "a name with a line break": (lambda s: renamed(s, "base_model\nmodel"), "allowed"),
}


@pytest.mark.parametrize("what", BROKEN_WEIGHTS)
def test_broken_weights_are_one_line(specimen, what):
    damage, expected = BROKEN_WEIGHTS[what]
    weights = damage(specimen)
    folder = specimen.write(weights=weights)
    for use in (
        lambda: load_adapter(shared_copy(specimen.base), folder),
        lambda: write_lora(folder, None, folder / "x"),
    ):
        with pytest.raises(MiloraError, match=expected) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_numbers_that_overflow_are_not_written(specimens):
    for specimen in specimens:
        header = specimen.header()
        name = next(n for n in header if n.endswith(("lora_B.weight", "L0")))
        start, end = header[name]["data_offsets"]
        data = bytearray(specimen.data())
        data[start:end] = b"\xff\xff\x7f\x7f" * ((end - start) // 4)  # float32's largest number, and the scale is 4
        config = specimen.config.replace(b'"lora_alpha": null', b'"lora_alpha": 8')
        folder = specimen.write(config, specimen.with_header(header, bytes(data)))
        if specimen is specimens[0]:
            with pytest.raises(MiloraError, match="its change is over float32's largest number"):
                write_lora(folder, None, specimen.root / "over")
            assert not (specimen.root / "over").exists()
        # Split evenly between the factors, the same change is within float32's range.
        write_lora(folder, None, specimen.root / "even", rank=1)
        parts = load_file(specimen.root / "even" / WEIGHTS)
        assert all(bool(torch.isfinite(t).all()) for t in parts.values())


def config_with(**fields):
    return lambda s: json.dumps({**json.loads(s.config), **fields}).encode()


BROKEN_CONFIGS = {
    "nothing in it": lambda s: b"",
    "not UTF-8": lambda s: b"\xff\xfe" + s.config,
    "truncated": lambda s: s.config[:100],
    "100,000 deep": lambda s: DEEP.encode(),
    "a key 100,000 deep": lambda s: s.config.rstrip()[:-1] + b', "x": ' + DEEP.encode() + b"}",
    "a list": lambda s: b"[]",
    "a number": lambda s: b"7",
    "no type": lambda s: b"{}",
    "type of nothing": config_with(peft_type="NOSUCH"),
    "type a list": config_with(peft_type=["SPECTRAL"]),
    "rank of text": config_with(r="four"),
    "rank without end": lambda s: s.config.replace(b'"r": 2', b'"r": ' + b"9" * 400),
    "rank over the layer": config_with(r=9),
    "rank with more digits than Python reads": lambda s: s.config.replace(b'"r": 2', b'"r": ' + b"9" * 9000),
    "alpha infinite": config_with(lora_alpha=float("inf")),
    "dropout NaN": config_with(lora_dropout=float("nan")),
    "dropout of text": config_with(lora_dropout="much"),
    "pattern a list": config_with(rank_pattern=["q_proj"]),
    "alpha of a pattern without end": config_with(alpha_pattern={"": -(10**400)}),
    "alpha of a pattern of text": config_with(alpha_pattern={"q_proj": "much"}),
    "rank of a pattern without end": config_with(rank_pattern={"q_proj": 10**400}),
    "pattern no expression": config_with(rank_pattern={"(": 2}),
    "target no expression": config_with(target_modules="("),
    "target a number": config_with(target_modules=3),
    "method of nothing": config_with(method="nosuch"),
    "method a list": config_with(method=["milora"]),
    "bias a dict": config_with(bias={}),
    "layers of text": config_with(layers_to_transform="all"),
}


@pytest.mark.parametrize("what", BROKEN_CONFIGS)
def test_a_broken_configuration_is_one_line(specimen, what):
    folder = specimen.write(config=BROKEN_CONFIGS[what](specimen))
    with pytest.raises(MiloraError) as caught:
        load_adapter(shared_copy(specimen.base), folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"lora_alpha": 0.5}], ids=["plain", "rslora", "float"])
@pytest.mark.parametrize("pattern", ["alpha_pattern", "rank_pattern"])
def test_a_number_without_end_is_refused_in_a_lora(specimens, pattern, fields):
    for number in (10**400, -(10**400)):
        assert outcome(specimens[1], config_with(**fields, **{pattern: {"q_proj": number}})(specimens[1]))


@pytest.mark.parametrize("what", ["a path upwards", "header length over the file", "NaN"])
def test_the_command_says_it_in_one_line(specimen, what, capsys):
    folder = shutil.copytree(specimen.write(weights=BROKEN_WEIGHTS[what][0](specimen)), specimen.root / "copy")
    out = specimen.root / "out"
    base = ["--model_name_or_path", str(specimen.root / "base"), "--output", str(out)]
    for verb in ("export", "merge", "import"):
        capsys.readouterr()
        assert main([verb, str(folder), *base]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert len([line for line in lines if line.startswith("error: ")]) == 1 and "Traceback" not in "\n".join(lines)
        assert not out.exists()
    shutil.rmtree(folder)


# --- fuzzing: any of these damages, any number of them

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 20)
    | st.sampled_from([10**30, -(10**400), 1 << 63])
    | st.floats(allow_nan=True)
    | st.text(max_size=8)
    | st.sampled_from(
        ["", "(", ".*", "q_proj", "../x", "/etc/passwd", "a\0b", "LORA", "VERA", "IA3", "SPECTRAL", "all"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["../../x", "/etc/passwd", "a\0b", "", ".", "spectral_L0", ".spectral_L0", "base_model.model.x.spectral_dR",
     "base_model.model.lm_head.weight", "base_model.model.model.layers.0.self_attn.q_proj.bias", "é\n", "\ud800"]
) | st.text(max_size=12)  # fmt: skip
SPECIAL = [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"abcd"]  # NaN, Inf, the largest, any
NUMBERS = st.integers(-2, 300) | st.sampled_from([1 << 31, 1 << 62, (1 << 64) - 1, 1 << 70])


@st.composite
def configs(draw, specimen: Specimen) -> bytes:
    """A configuration with some fields changed, or bytes that are hardly one."""
    text = specimen.config.decode()
    fields = json.loads(text)
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=3)):
        fields[name] = draw(JSON)
    if draw(st.booleans()):
        fields.pop(draw(st.sampled_from(sorted(fields))), None)
    text = json.dumps(fields)
    how = draw(st.sampled_from(["as is", "as is", "twice", "cut", "bytes", "deep", "any"]))
    if how == "twice":
        text = text[:-1] + f", {json.dumps(draw(st.sampled_from(sorted(fields) or ['r'])))}: {json.dumps(draw(JSON))}}}"
    if how == "deep":
        text = text[:-1] + ', "deep": ' + DEEP + "}"
    content = text.encode()
    if how == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    if how == "bytes":
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.binary(max_size=4)) + content[at + 1 :]
    return json.dumps(draw(JSON)).encode() if how == "any" else content


@st.composite
def weights(draw, specimen: Specimen) -> bytes:
    """A safetensors file with a header that lies, other names, other bytes, or less of it."""
    header, data = specimen.header(), bytearray(specimen.data())
    for name in draw(st.lists(st.sampled_from([n for n in header if n != "__metadata__"]), max_size=2, unique=True)):
        what = draw(st.sampled_from(["name", "dtype", "shape", "offsets", "drop", "any"]))
        if what == "name":
            header[draw(NAMES)] = header.pop(name)
        elif what == "drop":
            del header[name]
        elif what == "any":
            header[name] = draw(JSON)
        else:
            values = {
                "dtype": st.sampled_from(["F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "C64", "x"]),
                "shape": st.lists(NUMBERS, max_size=3),
                "offsets": st.lists(NUMBERS, min_size=1, max_size=3),
            }[what]
            header[name]["data_offsets" if what == "offsets" else what] = draw(values)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data) - 4))
        data[at : at + 4] = draw(
            st.sampled_from([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"abcd"])
        )
    content = specimen.with_header(header, bytes(data))
    how = draw(st.sampled_from(["as is", "as is", "as is", "cut", "length", "bytes", "deep", "any"]))
    if how == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    if how == "length":
        content = struct.pack("<Q", draw(NUMBERS.filter(lambda n: 0 <= n < 1 << 64))) + content[8:]
    if how == "bytes":
        at = draw(st.integers(0, min(len(content), 1200)))
        content = content[:at] + draw(st.binary(max_size=4)) + content[at + 1 :]
    if how == "deep":
        content = specimen.with_header('{"a": ' + DEEP + "}")
    return draw(st.binary(max_size=40)) if how == "any" else content


def fuzz(specimens: list[Specimen], cases: int) -> tuple[int, int]:
    """Run so many cases; how many there were, and how many of them were refused."""
    judged = refused = 0

    @settings(
        max_examples=cases, deadline=timedelta(seconds=5), database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def judge(data):
        nonlocal judged, refused
        specimen = data.draw(st.sampled_from(specimens))
        which = data.draw(st.sampled_from(["config", "weights", "both"]))
        config = data.draw(configs(specimen)) if which != "weights" else None
        content = data.draw(weights(specimen)) if which != "config" else None
        judged += 1
        refused += bool(outcome(specimen, config, content))

    judge()
    return judged, refused


def test_two_hundred_damaged_adapters(specimens):
    judged, refused = fuzz(specimens, 200)
    assert judged >= 200 and refused > judged / 2


@pytest.mark.slow
def test_ten_thousand_damaged_adapters(specimens):
    judged, refused = fuzz(specimens, 10_000)
    print(f"{judged} damaged adapters, {refused} refused in one line")
    assert judged >= 10_000 and refused > judged / 2


def test_every_field_of_our_configuration_has_a_type():
    """A field that is added without one would let any JSON value through to where it is used."""
    assert set(SpectralConfig.__dataclass_fields__) <= set(_TYPES)
