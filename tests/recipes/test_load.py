"""Flags over file over defaults, and every problem told at once."""

import pytest
import torch
import yaml

from milora.adapters import peft_config
from milora.errors import MiloraError
from milora.recipes import Recipe, dump, load_recipe, recipes
from milora.recipes.checks import UNUSED
from milora.recipes.keys import MatchedRate
from milora.recipes.load import OTHER_NAMES
from milora.recipes.method_settings import known_methods

NEEDED = {"model_name_or_path": "m", "dataset": "d.jsonl", "output_dir": "o"}
MATCH = {"learning_rate": {"match": "lora", "at": 3e-4}}
NEEDED_YAML = "model_name_or_path: m\ndataset: d.jsonl\noutput_dir: o\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="r.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def problems(path=None, **overrides):
    with pytest.raises(MiloraError) as error:
        load_recipe(path, overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_flags_over_file_over_defaults(write):
    path = write(NEEDED_YAML + "lora_r: 8\nlearning_rate: 1e-5\n")
    recipe = load_recipe(path, {"lora_r": 4})
    assert (recipe.lora_r, recipe.learning_rate, recipe.lora_dropout) == (4, 1e-5, 0.05)
    assert load_recipe(path).lora_r == 8
    assert load_recipe(None, NEEDED).lora_r == 32


def test_the_needed_keys_are_asked_for():
    assert problems() == "recipe: model_name_or_path: missing; dataset: missing; output_dir: missing"


def test_all_problems_at_once(write):
    path = write(
        "model_name_or_path: m\ndataset: 3\nlerning_rate: 1\ncutoff_len: 9\nlora_r: many\nlora_dropout: 1.0\n"
        "method: milorra\neval_strategy: sometimes\npacking: true\n"
    )
    message = problems(path)
    assert message.startswith(f"recipe {path}: ")
    assert message.removeprefix(f"recipe {path}: ").split("; ") == [
        "unknown key 'lerning_rate' (did you mean 'learning_rate'?)",
        "unknown key 'cutoff_len' (here it is 'max_length')",
        "lora_r: got 'many', allowed int",
        "lora_dropout: got 1.0, allowed less than 1",
        "dataset: got 3, allowed str",
        "output_dir: missing",
        "eval_strategy: got 'sometimes', allowed no, steps, epoch",
        "method: got 'milorra' (did you mean 'milora'?), allowed "
        "lora_xs, mica, milora, pissa, random_components, svf, svft, lora, rslora, dora, adalora, vera, full",
        "packing: got true without max_length, which is the size of a block",
    ]


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("lora_r", "32", "int"),
        ("lora_r", 0, "greater than 0"),
        ("lora_r", True, "int"),
        ("learning_rate", "fast", "float or {match: str, at: float}"),
        ("learning_rate", {"match": "lora"}, "float or {match: str, at: float}"),
        ("learning_rate", {"at": 1e-3, "match": "lora", "x": 1}, "float or {match: str, at: float}"),
        ("learning_rate", {"at": -1.0, "match": "lora"}, "greater than 0"),
        ("learning_rate", {"at": float("inf"), "match": "lora"}, "a finite number"),
        ("packing", 1, "bool"),
        ("bf16", "yes", "auto or bool"),
        ("target_modules", [1], "str or list[str]"),
        ("layers_to_transform", ["a"], "list[int] or null"),
        ("rank_pattern", {"a": "b"}, "dict[str, int]"),
        ("val_set_size", "some", "int or float"),
        ("val_set_size", -1, "greater than or equal to 0"),
        ("max_length", 0, "greater than 0"),
        ("learning_rate", float("inf"), "a finite number"),
        ("max_grad_norm", float("nan"), "a finite number"),
        ("loss_on", "answer", "completion, all"),
    ],
)
def test_wrong_values_of_one_key(write, key, value, allowed):
    path = write(yaml.safe_dump({**NEEDED, key: value}))
    assert problems(path) == f"recipe {path}: {key}: got {value!r}, allowed {allowed}"


@pytest.mark.parametrize(
    "keys, problem",
    [
        ({"load_best_model_at_end": True}, "load_best_model_at_end: got true without validation rows"),
        (
            {"load_best_model_at_end": True, "val_set_size": 5, "eval_strategy": "no"},
            "load_best_model_at_end: got eval_strategy no and save_strategy epoch",
        ),
        (
            {
                "load_best_model_at_end": True,
                "val_set_size": 5,
                "eval_strategy": "steps",
                "eval_steps": 40,
                "save_strategy": "steps",
                "save_steps": 100,
            },
            "load_best_model_at_end: got save_steps 100 and eval_steps 40, allowed save_steps a multiple",
        ),
        ({"eval_strategy": "steps", "eval_steps": 5}, "eval_strategy: got steps without validation rows"),
        (
            {"eval_strategy": "steps", "val_set_size": 5},
            "eval_strategy: got steps without eval_steps, allowed with a number of steps",
        ),
        ({"save_steps": 5}, "save_steps: got 5 with save_strategy epoch, allowed only with save_strategy steps"),
        ({"val_set_size": 5, "eval_dataset": "e.jsonl"}, "val_set_size: got 5 with eval_dataset"),
        ({"eval_split": "test"}, "eval_split: got 'test' without eval_dataset"),
        ({"eval_dataset_limit": 3}, "eval_dataset_limit: got 3 without eval_dataset"),
        ({"min_length": 9, "max_length": 8}, "min_length: got 9 with max_length 8, allowed no more than that"),
        ({"report_to": "wandb"}, "report_to: got 'wandb', allowed none, tensorboard"),
        ({"report_to": ["tensorboard", "mlflow"]}, "report_to: got 'mlflow', allowed none, tensorboard"),
        ({"val_set_size": 1.5}, "val_set_size: got 1.5, allowed a whole number of rows or a share below 1"),
        ({"warmup_steps": 1.5}, "warmup_steps: got 1.5, allowed a whole number of steps or a share below 1"),
        ({"max_steps": 0}, "max_steps: got 0"),
        ({"packing": True}, "packing: got true without max_length"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit, load_in_8bit: got both"),
        ({"load_in_4bit": True, "quantization": "bnb-4bit"}, "quantization, load_in_4bit: got both"),
        ({"quantization": "bnb-4bit", "gguf_file": "m.gguf"}, "quantization: got bnb-4bit with gguf_file"),
        ({"quantization": "bnb-8bit", "method": "full"}, "quantization: got bnb-8bit with method full"),
        ({"load_in_4bit": True, "method": "full"}, "load_in_4bit: got true with method full"),
        ({"dataset_format": "alpacca"}, "dataset_format: got 'alpacca' (did you mean 'alpaca'?)"),
        ({"prompt_template": "text"}, "prompt_template: got 'text'"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type: got 'cosin' (did you mean 'cosine'?)"),
        (
            {"method": "adalora", "method_settings": {"target_rank": 4}},
            "method_settings: adalora has no 'target_rank' (did you mean 'target_r'?), allowed layers_pattern",
        ),
        ({"method": "milora", "method_settings": {"target_r": 4}}, "method_settings: milora has no 'target_r'"),
        ({"method": "full", "method_settings": {"x": 4}}, "method_settings: full has no 'x', allowed no settings"),
        (MATCH | {"learning_rate": {"match": "lara", "at": 1.0}}, "learning_rate: got match 'lara' (did you mean"),
        (MATCH | {"learning_rate": {"match": "vera", "at": 1.0}}, "learning_rate: got match 'vera', allowed lora_xs"),
        (MATCH | {"method": "adalora"}, "learning_rate: got match with method adalora, whose first steps are not"),
        (
            MATCH | {"method": "svf", "method_settings": {"as_published": True}},
            "learning_rate: got match with method svf as_published",
        ),
        (MATCH | {"optim": "sgd"}, "learning_rate: got match with optim sgd, allowed with one of Adam's kind"),
    ],
)
def test_wrong_combinations(keys, problem):
    assert problems(**NEEDED, **keys).startswith(f"recipe: {problem}")


OTHER_VALUES = {
    "lora_r": 8, "lora_alpha": 16.0, "lora_dropout": 0.1, "target_modules": ["q_proj"], "exclude_modules": ["q_proj"],
    "layers_to_transform": [0], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 2.0}, "use_rslora": True,
    "bias": "all",
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "count"), [("vera", 5), ("adalora", 3), ("full", 5), ("lora", 0), ("dora", 0), ("milora", 0)]
)
def test_keys_that_a_method_would_not_follow_are_refused(write, method, count):
    own = NEEDED | {"method": method}
    refused = UNUSED.get(method, ())
    assert len(refused) == count and set(refused) <= set(OTHER_VALUES)
    for key, value in OTHER_VALUES.items():
        if key in refused:
            message = problems(**own, **{key: value})
            assert message.startswith(f"recipe: {key}: got {value!r} with method {method}, which has no use for it")
        else:
            load_recipe(None, own | {key: value})
    # A resolved recipe states every key, and is read back.
    assert load_recipe(write(dump(load_recipe(None, own)))).method == method


def test_a_matched_rate_is_written_and_read_back(write):
    recipe = load_recipe(None, NEEDED | MATCH)
    assert load_recipe(write(dump(recipe))) == recipe and recipe.learning_rate == MatchedRate(match="lora", at=3e-4)


@pytest.mark.parametrize("match", sorted(known_methods()))
def test_a_rate_is_matched_to_each_method_that_is_predicted(match):
    from milora.adapters.first_steps import method_steps
    from milora.linalg import SVD
    from milora.methods import get_method
    from milora.methods.first_steps import diagonal

    def factors(name, config):
        whole: SVD = diagonal(torch.arange(8.0, 0, -1))
        return get_method(config.method).factors(whole, config.choice(name))

    asked, settings = NEEDED | {"learning_rate": {"match": match, "at": 1e-3}}, {"method": match, "lora_r": 4}
    if match in ("adalora", "vera"):
        assert f"got match {match!r}" in problems(**asked)
        with pytest.raises(MiloraError, match="not predicted"):
            method_steps(settings, {"w": (8, 8)}, factors)
    else:
        assert load_recipe(None, asked).learning_rate.match == match
        assert method_steps(settings, {"w": (8, 8)}, factors)["w"] > 0


def test_right_combinations():
    steps = {"eval_strategy": "steps", "eval_steps": 40, "save_strategy": "steps", "save_steps": 80}
    for keys in (
        {"method": "adalora", "method_settings": {"target_r": 8, "tinit": 5}},
        {"method": "random_components", "method_settings": {"components_seed": 3}},
        steps | {"val_set_size": 0.1, "load_best_model_at_end": True},
        {"packing": True, "max_length": 64, "warmup_steps": 0.1},
    ):
        recipe = load_recipe(None, NEEDED | keys)
        assert {key: getattr(recipe, key) for key in keys} == keys


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("lora_r", "4", 4),
        ("learning_rate", "1e-5", 1e-5),
        ("learning_rate", "{match: lora, at: 3e-4}", MatchedRate(match="lora", at=3e-4)),
        ("packing", "true", True),
        ("bf16", "auto", "auto"),
        ("bf16", "false", False),
        ("eval_strategy", "no", "no"),
        ("val_set_size", "0.1", 0.1),
        ("val_set_size", "12", 12),
        ("max_length", "null", None),
        ("target_modules", "q_proj,v_proj", ["q_proj", "v_proj"]),
        ("target_modules", "[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("target_modules", "q_proj, self_attn.v_proj", ["q_proj", "self_attn.v_proj"]),
        ("target_modules", "all-linear", "all-linear"),
        ("target_modules", "q_proj", ["q_proj"]),
        ("target_modules", r".*\.\d{1,2}\..*q_proj", r".*\.\d{1,2}\..*q_proj"),
        ("target_modules", ".*(q|v)_proj,?", ".*(q|v)_proj,?"),
        ("target_modules", "[qv]_proj", "[qv]_proj"),
        ("target_modules", "*.q_proj", "*.q_proj"),
        ("exclude_modules", "null", None),
        ("exclude_modules", "lm_head", ["lm_head"]),
        ("report_to", "tensorboard", "tensorboard"),
        ("layers_to_transform", "0,2", [0, 2]),
        ("layers_to_transform", ["0", "2"], [0, 2]),
        ("layers_to_transform", "3", [3]),
        ("eval_tasks", "gsm8k", ["gsm8k"]),
        ("rank_pattern", "{q_proj: 4}", {"q_proj": 4}),
        ("dataset", "1e5", "1e5"),
    ],
)
def test_flags_as_text(key, text, value):
    more = {"max_length": 64} if key == "packing" else {}
    read = getattr(load_recipe(None, NEEDED | more | {key: text}), key)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("method", sorted(known_methods()))
def test_the_resolved_recipe_states_alpha_as_the_method_takes_it(write, method):
    r = 32 if method == "full" else 4
    recipe = load_recipe(write(NEEDED_YAML + f"method: {method}\nlora_r: {r}\nlora_alpha: null\n"))
    settings = {"method": method, "lora_r": r}
    config = peft_config(settings | {"method_settings": {"total_step": 9} if method == "adalora" else {}})
    ranked = dict.fromkeys(("lora_xs", "mica", "milora", "pissa", "random_components"), 4)
    taken = {**ranked, **dict.fromkeys(("svf", "svft", "vera", "full"))}.get(method, 8)
    assert recipe.lora_alpha == taken == Recipe(**NEEDED, **settings).lora_alpha
    if taken == 8:
        assert config.lora_alpha == 8
    elif taken == 4:
        assert config.scale("q_proj") == 1 == peft_config(settings | {"lora_alpha": taken}).scale("q_proj")
    if taken:
        assert load_recipe(None, {**NEEDED, **settings, "lora_alpha": 3.0}).lora_alpha == 3.0


def test_layers_of_their_own_rank_keep_their_own_alpha():
    ranks = {"rank_pattern": {"q_proj": 2}}
    assert load_recipe(None, {**NEEDED, **ranks, "method": "milora"}).lora_alpha is None
    assert load_recipe(None, {**NEEDED, **ranks, "method": "lora"}).lora_alpha == 64


@pytest.mark.parametrize("name", sorted(OTHER_NAMES))
def test_other_tools_names_are_pointed_to_ours(name):
    assert OTHER_NAMES[name] in Recipe.model_fields
    assert name not in Recipe.model_fields
    assert f"unknown key {name!r} (here it is {OTHER_NAMES[name]!r})" in problems(**{name: 1})


def test_files_that_are_no_recipe(write, tmp_path):
    assert "got nothing, allowed keys with values" in problems(write(""))
    assert "got list, allowed keys with values" in problems(write("- a\n"))
    assert "line 2, column 5: mapping values are not allowed here" in problems(write("a: b\nc: d: e\n"))
    assert "key 'lora_r' stands twice" in problems(write("lora_r: 1\nlora_r: 2\n"))
    assert "line 2, column 1" in problems(write("lora_r: 1\nlora_r: 2\n"))
    assert "could not determine a constructor" in problems(write("a: !!python/object/apply:os.system [true]\n"))
    assert "cannot be read" in problems(_binary(tmp_path / "b.yaml"))
    assert "no such file (did you mean 'pissa-math'?)" in problems("pisa-math")
    assert "no such file" in problems(tmp_path / "none.yaml")


def _binary(path):
    path.write_bytes(b"\xff\xfe\x00")
    return path


def test_dump_is_read_back_equal(write):
    odd = {
        "name": "1e-5",
        "description": "no: yes, 'quotes' # and\nlines é",
        "sources": {"a": "on", "b": "0x1f", "c": "1:30", "d": "~", "e": "010", "f": "2024-01-01"},
        "learning_rate": 1e-7,
        "eval_strategy": "no",
        "target_modules": ["no", "q_proj"],
        "alpha_pattern": {"q": 1e20},
        "val_set_size": 7,
    }
    recipe = load_recipe(None, NEEDED | odd)
    text = dump(recipe)
    assert load_recipe(write(text)) == recipe
    assert Recipe.model_validate(yaml.safe_load(text)) == recipe
    assert list(yaml.safe_load(text)) == list(Recipe.model_fields)


def test_every_shipped_recipe_survives_a_dump(write):
    assert len(recipes()) >= 5
    for name in recipes():
        recipe = load_recipe(name)
        assert load_recipe(write(dump(recipe))) == recipe


@pytest.mark.parametrize("name", ["llm-adapters-math", "llm-adapters-commonsense", "pissa-math"])
def test_a_preset_also_trains_every_weight(name):
    assert load_recipe(name, {"method": "full"}).method == "full"
