from pathlib import Path

import pytest

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.memory.loop_recipe import LoopRecipe
from sfvgen_planner.world_model.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("kind", "name"), [(Recipe, "tabletop.yaml"), (LoopRecipe, "tabletop_memory_short.yaml")]
)
@pytest.mark.parametrize("words", ["no", '"no"', "bf16"])
def test_precision_is_what_the_recipe_says_quoted_or_not(tmp_path, kind, name, words):
    given = (RECIPES / name).read_text()
    (tmp_path / name).write_text(
        given.replace("mixed_precision: bf16", f"mixed_precision: {words}")
    )
    for recipe in (
        kind.load(tmp_path / name),
        kind.load(RECIPES / name, [f"mixed_precision={words}"]),
    ):
        assert recipe.mixed_precision == words.strip('"')
    for wrong in ("yes", "0", "fp16"):
        with pytest.raises(SfvgenError, match="mixed_precision: Input should be 'no' or 'bf16'"):
            kind.load(RECIPES / name, [f"mixed_precision={wrong}"])
