"""The recipe: all keys in one flat model. Keys and their values are checked here, their combinations in
checks.py."""

from pydantic import ConfigDict

from milora.recipes.keys import AboutKeys, DataKeys, MeasuringKeys, MethodKeys, ModelKeys, TrainingKeys


# pydantic takes the fields of the last base first.
class Recipe(MeasuringKeys, TrainingKeys, DataKeys, MethodKeys, ModelKeys, AboutKeys):
    """Everything that decides a run. Unknown keys and values of another type are refused.

    Built from code, it checks each key by itself (pydantic.ValidationError); `milora.recipes.load_recipe`
    also checks the combinations, and tells all problems at once.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
