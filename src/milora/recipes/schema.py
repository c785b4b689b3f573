"""The recipe: all keys in one flat model. Keys and their values are checked here, their combinations in
checks.py."""

from typing import Any

from pydantic import ConfigDict, model_validator

from milora.recipes.keys import AboutKeys, DataKeys, MeasuringKeys, MethodKeys, ModelKeys, TrainingKeys
from milora.recipes.method_settings import default_alpha


# pydantic takes the fields of the last base first.
class Recipe(MeasuringKeys, TrainingKeys, DataKeys, MethodKeys, ModelKeys, AboutKeys):
    """Everything that decides a run. Unknown keys and values of another type are refused.

    Built from code, it checks each key by itself (pydantic.ValidationError); `milora.recipes.load_recipe`
    also checks the combinations, and tells all problems at once. ``lora_alpha`` is filled in where it is unset and
    the method has a default.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @property
    def base_dtype(self) -> str:
        """``dtype``, with float32 for auto where the base weights train: bfloat16 rounds most steps to nothing."""
        return "float32" if self.method == "full" and self.dtype == "auto" else self.dtype

    @property
    def base_quantization(self) -> str | None:
        """``quantization``, or what ``load_in_4bit`` and ``load_in_8bit`` mean by it."""
        return self.quantization or ("bnb-4bit" if self.load_in_4bit else "bnb-8bit" if self.load_in_8bit else None)

    @model_validator(mode="before")
    @classmethod
    def _fill_alpha(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("lora_alpha") is not None:
            return values
        defaults = {name: cls.model_fields[name].default for name in ("method", "lora_r", "rank_pattern")}
        return {**values, "lora_alpha": default_alpha(**{name: values.get(name, defaults[name]) for name in defaults})}
