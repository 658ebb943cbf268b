"""Episodes side by side, in a world whose model is perfect."""

import numpy as np
import pytest

from sfvgen_planner.data.episode import EpisodeSource
from sfvgen_planner.data.rollout import record_episode
from sfvgen_planner.evaluation.rollout import play_side_by_side, play_spread
from sfvgen_planner.imagination import ImaginationWrapper
from sfvgen_planner.planning import PlanningPolicy, VideoPlanner
from tests.point_mass import PointMassEnv, PointMassInverseDynamics, PointMassWorldModel

LENGTHS = (9, 20, 5)


class StrictEnv(PointMassEnv):
    """Refuses a step after the end."""

    def step(self, action):
        assert self.step_count < self.num_steps
        return super().step(action)


def new_policies(model):
    planner = VideoPlanner(PointMassInverseDynamics())
    envs = [ImaginationWrapper(StrictEnv(num_steps=length), model) for length in LENGTHS]
    return [PlanningPolicy(env, planner) for env in envs]


def test_an_episode_that_ends_early_rests_and_changes_no_other():
    model = PointMassWorldModel(noise=0.02)
    policies = new_policies(model)
    for seeds in ((3, 4, 5), (6, 7)):
        episodes = play_side_by_side(policies, seeds)
        assert [len(episode.actions) for episode in episodes] == list(LENGTHS[: len(seeds)])
        for policy, episode, seed in zip(policies, episodes, seeds, strict=False):
            alone = new_policies(PointMassWorldModel(noise=0.02))[LENGTHS.index(len(episode))]
            expected = record_episode(alone.imagination, alone, seed, EpisodeSource())
            assert np.allclose(episode.actions, expected.actions, atol=1e-5)
            assert np.abs(episode.frames.astype(int) - expected.frames).max() <= 1
            assert episode.instructions == expected.instructions
            assert (episode.seed, episode.terminated) == (seed, True)
            assert [r.step for r in policy.plans] == [r.step for r in alone.plans]
    # What rests is not planned for either: at step 16 only one episode is left.
    assert model.batch_sizes[0] == 3
    assert 1 in model.batch_sizes


def test_episodes_have_the_models_pictures_whatever_the_camera_shows():
    class LargeEnv(PointMassEnv):
        def render(self):
            return super().render().repeat(2, axis=0).repeat(2, axis=1)

    model = PointMassWorldModel()
    env = ImaginationWrapper(LargeEnv(num_steps=9), model)
    policy = PlanningPolicy(env, VideoPlanner(PointMassInverseDynamics()))
    (episode,) = play_side_by_side([policy], [3])
    assert episode.frames.shape == (10, model.config.image_size, model.config.image_size, 3)
    assert policy.plans[0].plan.frames[0].shape == episode.frames[0].shape


@pytest.mark.parametrize(("num_envs", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (8, [5])])
def test_tasks_are_handed_over_in_groups(num_envs, sizes):
    class Doubler:
        def __init__(self):
            self.sizes = []

        def play(self, tasks):
            self.sizes.append(len(tasks))
            return [2 * task for task in tasks]

        def close(self):
            pass

    player = Doubler()
    assert play_spread(player, range(5), 1, "doubled", num_envs) == [0, 2, 4, 6, 8]
    assert player.sizes == sizes
