"""What is asked: wording, regions and the places that a recall needs."""

from __future__ import annotations

import numpy as np
import pytest
from sfvgen_envs.tabletop_instructions import (
    NUM_PADS,
    REGIONS,
    EpisodePlan,
    Recall,
    Region,
    draw_episode,
    instruction_texts,
)

SEEDS = range(100)


def draw(seed: int, num_cubes: int, num_moves: int, recall: Recall) -> EpisodePlan:
    return draw_episode(np.random.default_rng(seed), num_cubes, num_moves, recall)


def test_level_one_without_recall_is_one_move_to_a_pad() -> None:
    for seed in SEEDS:
        plan = draw(seed, 1, 1, "none")
        (move,) = plan.instructions
        (cube,) = plan.cubes
        assert move.text == f"put the {cube} cube on the {move.place} pad"
        np.testing.assert_array_equal(move.target_xy, plan.pads[move.place])


@pytest.mark.parametrize("recall", ["none", "first", "previous"])
@pytest.mark.parametrize(("num_cubes", "num_moves"), [(1, 2), (2, 2), (3, 3), (4, 4), (4, 8)])
def test_every_episode_can_be_carried_out(num_cubes: int, num_moves: int, recall: Recall) -> None:
    for seed in SEEDS:
        plan = draw(seed, num_cubes, num_moves, recall)
        assert len(plan.cubes) == num_cubes
        assert len(plan.pads) == NUM_PADS
        assert len(plan.instructions) == num_moves + (recall != "none")
        stands = dict(plan.cubes)
        for a in plan.cubes.values():
            for pad in plan.pads.values():
                assert np.abs(a - pad).max() > 0.021 + 0.0375  # no cube starts on a pad
        history = {cube: [xy] for cube, xy in plan.cubes.items()}
        for instruction in plan.instructions:
            target = np.array(instruction.target_xy)
            others = [xy for cube, xy in stands.items() if cube != instruction.cube]
            assert all(np.linalg.norm(target - xy) >= 0.10 for xy in others)
            assert np.linalg.norm(target - stands[instruction.cube]) >= 0.10
            assert instruction.distance(target, target) == 0
            if instruction.kind == "region":
                assert instruction.distance(stands[instruction.cube], target) > 0
            stands[instruction.cube] = target
            history[instruction.cube].append(target)
        if recall == "none":
            continue
        *_, recalled = plan.instructions
        places = history[recalled.cube][:-1]
        assert recalled.kind == recall
        assert plan.instructions[0].cube == recalled.cube
        expected = places[0] if recall == "first" else places[-2]
        np.testing.assert_array_equal(recalled.target_xy, expected)
        if recall == "previous":
            assert len(places) >= 3
            assert np.linalg.norm(places[0] - places[-2]) >= 0.10
            assert np.linalg.norm(places[0] - places[-1]) >= 0.10


@pytest.mark.parametrize("recall", ["first", "previous"])
@pytest.mark.parametrize("num_moves_before", [0, 1, 2])
def test_other_cubes_can_move_before_the_recalled_one(
    recall: Recall, num_moves_before: int
) -> None:
    for seed in SEEDS:
        plan = draw_episode(np.random.default_rng(seed), 3, 4, recall, num_moves_before)
        *movers, recalled = (instruction.cube for instruction in plan.instructions)
        assert len(movers) == 4
        assert movers.index(recalled) == num_moves_before
        if recall == "previous":
            assert movers.count(recalled) == 2


@pytest.mark.parametrize("recall", ["first", "previous"])
def test_how_long_ago_the_place_asked_for_was_left_is_drawn_evenly(recall: Recall) -> None:
    since, before = [], []
    for seed in range(400):
        plan = draw_episode(np.random.default_rng(seed), 3, 5, recall, num_moves_before=None)
        *movers, recalled = (instruction.cube for instruction in plan.instructions)
        leaves = [index for index, mover in enumerate(movers) if mover == recalled]
        since.append(len(movers) - 1 - leaves[0 if recall == "first" else 1])
        before.append(leaves[0])
    kinds = 5 if recall == "first" else 4
    # With p = 1 / 4, 400 draws give 100 +- 9 (one standard deviation).
    np.testing.assert_allclose(np.bincount(since), 400 / kinds, atol=36)
    if recall == "previous":
        # Of those left last, 100 +- 9, each has 0 to 3 other moves before: 25 +- 4.
        left_last = np.array(before)[np.array(since) == 0]
        np.testing.assert_allclose(np.bincount(left_last), len(left_last) / 4, atol=18)


def test_no_cube_moves_before_the_recalled_one_where_there_is_no_other() -> None:
    plan = draw_episode(np.random.default_rng(0), 1, 3, "first", num_moves_before=None)
    assert len({instruction.cube for instruction in plan.instructions}) == 1


def test_first_recalls_include_cubes_that_moved_twice() -> None:
    moves = [
        sum(move.cube == plan.instructions[-1].cube for move in plan.instructions[:-1])
        for plan in (draw(seed, 4, 4, "first") for seed in SEEDS)
    ]
    assert 1 in moves
    assert 2 in moves


def test_a_seed_decides_everything() -> None:
    one, same, other = draw(1, 4, 4, "first"), draw(1, 4, 4, "first"), draw(2, 4, 4, "first")
    assert one.instructions == same.instructions != other.instructions
    for cube, xy in one.cubes.items():
        np.testing.assert_array_equal(xy, same.cubes[cube])


def test_all_sentences_differ_and_all_are_asked() -> None:
    texts = list(instruction_texts())
    assert len(set(texts)) == len(texts) == 4 * (4 + 9 + 2)
    assert {
        "put the red cube on the blue pad",
        "move the green cube to the left",
        "put the blue cube in the front left corner",
        "put the yellow cube in the middle",
        "return the red cube",
        "put the red cube back where it was before",
    } <= set(texts)
    asked = {
        instruction.text
        for recall in ("first", "previous")
        for seed in SEEDS
        for instruction in draw(seed, 4, 8, recall).instructions
    }
    assert asked == set(texts)


def test_regions_mean_what_they_say() -> None:
    left_back = np.array([-0.15, 0.12])
    inside = {name for name, region in REGIONS.items() if region.distance(left_back) == 0}
    assert inside == {"left", "back", "back left corner"}
    assert {n for n, r in REGIONS.items() if r.distance(np.zeros(2)) == 0} == {"middle"}


def test_distance_to_a_region_is_to_its_nearest_point() -> None:
    region = Region((0.0, 0.0), (0.1, 0.1))
    assert region.distance(np.array([0.05, 0.02])) == 0
    assert region.distance(np.array([0.13, 0.14])) == pytest.approx(0.05)
    assert region.distance(np.array([0.05, -0.02])) == pytest.approx(0.02)
