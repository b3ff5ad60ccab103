"""Stages that make a network smaller and faster, and the pipeline that joins them. Imports the other three packages."""

from __future__ import annotations

from optimize.recipe import Recipe, combine, recipe_from
from optimize.registry import STAGES, get_stage

__all__ = ["STAGES", "Recipe", "combine", "get_stage", "recipe_from"]
