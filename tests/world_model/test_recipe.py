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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("world_model.unet.block_out_channels=[16,32]", "multiple of 32"),
        ("world_model.unet.block_out_channels=[]", "at least 1 item"),
        ("world_model.unet.attention_head_dim=0", "greater than 0"),
        ("autoencoder.block_out_channels=[16,20]", "multiple of 16"),
        ("autoencoder.norm_num_groups=0", "greater than 0"),
        ("autoencoder.latent_channels=-1", "greater than 0"),
        ("world_model.text.num_heads=3", "multiple of num_heads"),
        ("world_model.text.max_length=0", "greater than 2"),
        ("inverse_dynamics.block_out_channels=[]", "at least 1 item"),
        ("inverse_dynamics.block_out_channels=[12]", "multiple of 8"),
        ("world_model.shift=.inf", "finite number"),
        ("seed=9999999999999999999", "less than"),
        ("data.image_size=1000000", "less than or equal to 4096"),
        ("data.sources.0.episodes=100000000000000", "less than or equal to"),
        ("data.sources.0.seed=99999999999999999999", "less than"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused_before_any_work(change, words):
    with pytest.raises(SfvgenError, match=words):
        Recipe.load(RECIPES / "tabletop.yaml", [change])


def test_some_mix_of_conditions_must_be_trained():
    names = ("language", "actions", "language_and_actions", "none", "whole_sequence")
    with pytest.raises(SfvgenError, match="a weight above 0"):
        Recipe.load(
            RECIPES / "tabletop.yaml", [f"world_model.conditions.{name}=0" for name in names]
        )


@pytest.mark.parametrize(
    ("weight", "words"),
    [(".nan", "finite"), ("-1", "or equal to 0"), ("0", "above 0")],
)
def test_a_recall_needs_a_weight(weight, words):
    with pytest.raises(SfvgenError, match=words):
        LoopRecipe.load(RECIPES / "tabletop_memory.yaml", [f"recalls={{return: {weight}}}"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("memory.rank=x", r"memory\.rank: Input should be a valid integer"),
        ("memory.num_time_codes=1.5", r"memory\.num_time_codes: "),
        ("memory.rnk=3", r"memory\.rnk: Unexpected keyword argument"),
        ("memory.rule=sgd", r"memory\.rule: Input should be 'adam' or 'normalised'"),
        ("memory.rank=0", "rank of a memory must be at least 1, got 0"),
    ],
)
def test_a_wrong_setting_of_a_memory_is_named(change, words):
    with pytest.raises(SfvgenError, match=words):
        LoopRecipe.load(RECIPES / "tabletop_memory.yaml", [change])


def test_a_recipe_is_utf_8_in_any_locale(tmp_path, monkeypatch):
    file = tmp_path / "recipe.yaml"
    text = (RECIPES / "tabletop.yaml").read_text().replace("name: tabletop", "name: Tänzer")
    file.write_bytes(text.encode())
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    monkeypatch.setattr("locale.getencoding", lambda: "ascii")
    assert Recipe.load(file).name == "Tänzer"
    file.write_text("[" * 3000)
    with pytest.raises(SfvgenError, match="cannot read the recipe"):
        Recipe.load(file)


@pytest.mark.parametrize("value", ["2024-13-45", "!!int abc", "!!bool abc", "!!timestamp abc"])
def test_yaml_that_means_nothing_is_told(tmp_path, value):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"seed: {value}")
    with pytest.raises(SfvgenError, match=r"cannot read the recipe .*recipe\.yaml: "):
        Recipe.load(file)
    with pytest.raises(SfvgenError, match=r"the value in 'seed=.*' is no YAML: "):
        Recipe.load(RECIPES / "tabletop.yaml", [f"seed={value}"])
