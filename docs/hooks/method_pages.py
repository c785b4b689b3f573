"""The page of each method: what the code knows of it, beside the notes in docs/methods.

The methods are those of the registry, PEFT's that a recipe can name, and full fine-tuning. One without notes gets a
page too.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from markdown_tables import code, fence, prose, table

NOTES = Path(__file__).resolve().parents[1] / "methods"
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))  # Llama-2-7B: q, k, v, o; gate and up; down
RANK = 16
TITLES = {
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "vera": "VeRA",
    "full": "Full fine-tuning",
}
# Fields of a SpectralConfig that a recipe says by another key, or that are filled in when an adapter is made.
SAID_ELSEWHERE = {"embedding_modules", "base_fingerprint", "base_precision", "target_parameters"}


def names() -> list[str]:
    """Every method that a recipe can name."""
    from milora.adapters import method_names

    return method_names()


def title(name: str) -> str:
    """The name people read."""
    from milora.methods import METHODS

    return METHODS[name].title if name in METHODS else TITLES.get(name, name)


def navigation() -> dict[str, str]:
    """Titles and pages, as the navigation takes them."""
    return {title(name): f"methods/{name}.md" for name in names()}


def pages_without_notes() -> dict[str, str]:
    """A page for each method that nobody has written notes on."""
    missing = [name for name in names() if not (NOTES / f"{name}.md").is_file()]
    return {f"methods/{name}.md": f"# {title(name)}\n\n<!-- generated: method {name} -->\n" for name in missing}


def table_of_methods() -> str:
    """All methods, with the numbers that each trains of one weight."""
    rows = [[f"[{title(n)}]({n}.md)", code(n), _trains(n), *(f"{c:,}" for c in counts(n))] for n in names()]
    header = ["method", "in a recipe", "what trains", *(f"{out} x {in_}" for out, in_ in SHAPES)]
    return table(header, rows, right=range(3, 3 + len(SHAPES)))


def facts(name: str) -> str:
    """What the code knows of a method, for its page."""
    parts = [
        "## In the code\n", fence(equation(name), "text"),
        table(["what", "value"], _summary(name)),
        f"Trainable numbers of one weight (out x in), r = {RANK} where there is a rank, counted by the code:\n",
        table([f"{out} x {in_}" for out, in_ in SHAPES], [[f"{c:,}" for c in counts(name)]], right=range(len(SHAPES))),
        *_settings(name),
        "### A recipe\n", "The rate is a place to begin a search, not a recommendation.\n", fence(recipe(name), "yaml"),
        *(["### In Python\n", fence(python(name), "python")] if name != "full" else []),
        *_docstring(name),
    ]  # fmt: skip
    return "\n".join(parts)


def equation(name: str) -> str:
    """The equation in one line, as `milora methods` prints it."""
    from milora.adapters.build import PEFT_METHODS
    from milora.methods import METHODS

    return METHODS[name].equation if name in METHODS else PEFT_METHODS.get(name, "every weight of the model trains")


def counts(name: str, r: int = RANK) -> list[int]:
    """Trainable numbers of one weight of each shape."""
    from milora.methods import METHODS, Choice

    if name in METHODS:
        return [METHODS[name].count(out, in_, Choice(r, 1.0)) for out, in_ in SHAPES]
    return [_counted_by_peft(name, out, in_, r) for out, in_ in SHAPES]


def _counted_by_peft(name: str, out: int, in_: int, r: int) -> int:
    import torch
    from torch import nn

    from milora.adapters import attach, peft_config

    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(in_, out, bias=False))
    if name == "full":
        return sum(p.numel() for p in model.parameters())
    own = {"total_step": 1000, "init_r": r} if name == "adalora" else {}
    settings = {"method": name, "lora_r": r, "target_modules": ["0"], "method_settings": own, "task_type": None}
    config: Any = peft_config(settings)
    config.task_type = None
    return sum(p.numel() for p in attach(model, config).parameters() if p.requires_grad)


def _trains(name: str) -> str:
    from milora.methods import METHODS

    if name in METHODS:
        return ", ".join(sorted(METHODS[name].trains, key="LCR".index))
    return {"lora": "A, B", "rslora": "A, B", "dora": "A, B, magnitude", "adalora": "P, lambda, Q", "vera": "b, d",
            "full": "W"}.get(name, "")  # fmt: skip


def _summary(name: str) -> list[list[str]]:
    from milora.methods import METHODS
    from milora.recipes.method_settings import default_alpha

    alpha = default_alpha(name, RANK, {})
    rows = [["in a recipe", code(f"method: {name}")], ["what trains", _trains(name)],
            ["lora_alpha if unset", {None: "has none", RANK: "r"}.get(alpha, "2r")]]  # fmt: skip
    if name not in METHODS:
        return rows
    method = METHODS[name]
    allowed = ", ".join(map(code, method.components)) or "takes all"
    rows += [["paper", method.paper], ["`components`", allowed]]
    return [*rows, ["rank", "`lora_r`" if method.ranked else "none: all singular triplets"]]


def _settings(name: str) -> list[str]:
    from milora.recipes.method_settings import known_methods

    own, fields = known_methods().get(name, ()), _fields(name)
    rows = [
        [code(n), code(_default(fields[n])), _help(fields[n], n)]
        for n in own
        if n in fields and n not in SAID_ELSEWHERE
    ]
    if not rows:
        return []
    intro = "In a recipe these stand in `method_settings`, in Python they are fields of the configuration.\n"
    return ["### Settings of its own\n", intro, table(["setting", "default", "meaning"], rows)]


def _fields(name: str) -> dict[str, dataclasses.Field[Any]]:
    from peft import AdaLoraConfig, LoraConfig, VeraConfig

    from milora.adapters import SpectralConfig
    from milora.methods import METHODS

    if name == "full":
        return {}
    other = {"adalora": AdaLoraConfig, "vera": VeraConfig}.get(name, LoraConfig)
    config: Any = SpectralConfig if name in METHODS else other
    return {f.name: f for f in dataclasses.fields(config)}


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return repr(field.default_factory()) if field.default_factory is not dataclasses.MISSING else ""


def _help(field: dataclasses.Field[Any], name: str) -> str:
    from milora.adapters import SpectralConfig

    described = _arguments(SpectralConfig.__doc__ or "").get(name)
    text = " ".join(str(field.metadata.get("help", "")).split())
    return described if described and field.metadata == SpectralConfig.__dataclass_fields__[name].metadata else text


def _arguments(docstring: str) -> dict[str, str]:
    """The Args section of a docstring: name to description; several names may share a line."""
    found: dict[str, str] = {}
    last: list[str] = []
    for line in docstring.partition("Args:")[2].partition("Raises:")[0].splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if indent == 8 and ":" in text:
            head, _, rest = text.partition(":")
            last = [n.strip() for n in head.split(",")]
            found |= dict.fromkeys(last, rest.strip())
        elif text:
            found |= {n: f"{found[n]} {text}" for n in last}
    return found


def _docstring(name: str) -> list[str]:
    from milora.methods import METHODS

    if name not in METHODS:
        return []
    module = importlib.import_module(METHODS[name].factors.__module__)
    return ["### What its file says\n", prose((module.__doc__ or "").strip())]


def recipe(name: str) -> str:
    """A recipe of this method that is read as it stands."""
    from milora.methods import METHODS

    ranked = name != "full" and (name not in METHODS or METHODS[name].ranked)
    own = {
        "svft": "method_settings: {pattern: banded, d: 8}",
        "adalora": "method_settings: {tinit: 100, tfinal: 100, deltaT: 10}",
    }.get(name)
    lines = [
        "model_name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct", "dataset: my.jsonl", f"output_dir: runs/{name}",
        f"method: {name}", *(["lora_r: 32"] if ranked else []), *([own] if own else []),
        *(["target_modules: [q_proj, v_proj]"] if name == "mica" else []),
        f"learning_rate: {RATES.get(name, '3e-4')}", "val_set_size: 200",
    ]  # fmt: skip
    return "\n".join(lines)


# A place to begin a search over rates, by the published defaults; docs/choosing.md says how to search.
RATES = {"lora_xs": "2e-3", "svf": "2e-3", "svft": "5e-3", "adalora": "1e-3", "vera": "4e-3", "full": "1e-5"}


def python(name: str) -> str:
    """The same with PEFT's functions; MODEL stands for a model that is loaded."""
    from milora.methods import METHODS

    if name in METHODS:
        own = 'pattern="banded", d=8, ' if name == "svft" else ""
        rank = "r=32, " if METHODS[name].ranked else own
        call = f'SpectralConfig(method="{name}", {rank}target_modules="all-linear", task_type="CAUSAL_LM")'
        imports = "from milora import SpectralConfig\nfrom peft import get_peft_model"
        return f"{imports}\n\nmodel = get_peft_model(model, {call})"
    settings = {
        "method": name,
        "lora_r": 32,
        **({"method_settings": {"total_step": 1000, "init_r": 48}} if name == "adalora" else {}),
    }
    return (
        f"from milora.adapters import attach, peft_config\n\nmodel = attach(model, peft_config({settings!r}))".replace(
            "'", '"'
        )
    )
