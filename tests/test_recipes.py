"""The recipes that come with Pare can be read, and name what exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.registry import get_spec, get_task
from optimize.recipe import combine, stage_config
from optimize.registry import STAGES

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    recipe = combine(path, {})
    spec = get_spec(recipe.teacher.model, task=recipe.teacher.task)
    stages = STAGES.keys() & recipe.options.keys()
    sizes = [phase.size for name in stages for phase in stage_config(recipe, name).fit.phases]
    assert sizes
    for height, width in [recipe.input_size, *((size, size) for size in sizes)]:
        spec.size.check(height, width)


def test_the_overlay_recipe_is_the_published_practice() -> None:
    recipe = combine(ROOT / "recipes" / "overlay.yaml", {})
    config = stage_config(recipe, "train")
    assert [phase.size for phase in config.fit.phases] == [256, 384, 512]
    assert (config.pixel, config.fit.ema_decay, config.fit.tone_jitter) == ("ms_ssim_l1", 0.999, 0.0)
    assert 0.001 <= config.tv_weight <= 0.01


def test_the_low_light_recipe_is_that_of_the_paper() -> None:
    recipe = combine(ROOT / "recipes" / "low_light.yaml", {})
    config = stage_config(recipe, "train")
    task = get_task(recipe.teacher.task)
    assert [(phase.size, phase.batch_size) for phase in config.fit.phases] == [(1024, 1)]
    assert task.photo_size(recipe.input_size) == (1024, 1024)
    assert (config.pixel, config.late_pixel, config.perceptual_weight, config.tv_weight) == ("l1", None, 0.0, 0.0)
    assert (config.fit.learning_rate, config.fit.weight_decay) == (1e-4, 0.0)
