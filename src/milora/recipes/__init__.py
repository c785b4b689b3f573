"""Recipes: strict YAML, checked as a whole, and the ones that come with the package."""

from milora.recipes.load import dump, load_recipe, recipes
from milora.recipes.schema import Recipe

__all__ = ["Recipe", "dump", "load_recipe", "recipes"]
