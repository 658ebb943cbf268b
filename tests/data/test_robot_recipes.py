"""The shipped recipes of other people's robots."""

from pathlib import Path

import gymnasium as gym
import pytest
import sfvgen_envs  # noqa: F401, registers the environments

from sfvgen_planner.data.recipe import DataRecipe
from sfvgen_planner.evaluation.measure import HELD_OUT_SEED
from sfvgen_planner.world_model.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def test_rewards_can_be_learnt_from_all_data_of_the_recipe_for_policies() -> None:
    path = RECIPES / "metaworld_reach_policy.yaml"
    data = DataRecipe.load(path)
    seeds = [source.seed + i for source in data.sources for i in range(source.episodes)]
    assert len(seeds) == len(set(seeds)) == 200
    assert max(seeds) < HELD_OUT_SEED
    # A policy that does not listen has no instruction, and so no reward to learn from.
    assert {source.policy for source in data.sources} == {"expert"}
    # Some hardly reach anything, as policies that begin to learn.
    assert max(source.policy_kwargs["noise"] for source in data.sources) >= 3
    assert Recipe.load(path).outcome_head is not None


@pytest.mark.parametrize("name", ["fetch_push", "metaworld_reach", "ogbench_cube"])
def test_recipes_collect_from_seeds_of_their_own_and_train_a_planner(name: str) -> None:
    path = RECIPES / f"{name}.yaml"
    data = DataRecipe.load(path)
    assert data.env_id in gym.registry
    seeds = [source.seed + i for source in data.sources for i in range(source.episodes)]
    assert len(seeds) == len(set(seeds))
    assert max(seeds) < HELD_OUT_SEED
    assert {source.policy for source in data.sources} == {"expert", "random"}
    assert {0, 0.3} <= {source.policy_kwargs.get("noise", 0) for source in data.sources}
    recipe = Recipe.load(path)
    assert recipe.autoencoder is not None
    assert recipe.world_model is not None
    # A search must see whole plans in one chunk.
    assert recipe.world_model.num_future_frames == 8


@pytest.mark.parametrize("name", ["fetch_push", "metaworld_reach"])
def test_distances_are_learnt_up_to_what_an_episode_holds(name: str) -> None:
    recipe = Recipe.load(RECIPES / f"{name}.yaml")
    limit = gym.spec(recipe.data.env_id).max_episode_steps
    assert limit is not None
    assert recipe.temporal_distance is not None
    assert recipe.temporal_distance.max_frames <= limit // recipe.data.frame_skip
