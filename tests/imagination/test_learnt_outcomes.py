"""What an outcome head learnt of a world with held actions: rewards and ends as they are there."""

import numpy as np
import pytest
import torch
from sfvgen_policies import make_policy

from sfvgen_planner.data import EpisodeStore
from sfvgen_planner.data.episode import EpisodeSource
from sfvgen_planner.data.frame_skip import FrameSkip
from sfvgen_planner.data.rollout import record_episode
from sfvgen_planner.data.spec import StoreSpec
from sfvgen_planner.imagination import Start, WorldModelVectorEnv
from sfvgen_planner.world_model.data_facts import success_ends
from sfvgen_planner.world_model.frame_table import FrameTable
from sfvgen_planner.world_model.outcome_head import OutcomeHead
from sfvgen_planner.world_model.outcome_learning import OutcomeObjective, outcome_batches
from sfvgen_planner.world_model.recipe import Optimisation, OutcomeHeadRecipe
from tests.point_mass import SIZE, PointMassEnv, PointMassWorldModel

SKIP = 3
NUM_FRAMES = 12
GOAL = 0.6


class NearEnv(PointMassEnv):
    """Pays 20 less 40 times the way to a line in every step; near it is success."""

    def __init__(self, success_ends):
        super().__init__(num_steps=SKIP * NUM_FRAMES)
        self.success_ends = success_ends

    def step(self, action):
        # Three steps make the way of one imagined frame.
        observation, _, _, _, info = super().step(np.asarray(action) / SKIP)
        over = self.step_count >= self.num_steps
        return observation, 20 - 40 * self._way, info["success"] & self.success_ends, over, info

    @property
    def _way(self):
        return abs(float(self.position[0]) - GOAL)

    def _info(self):
        return {"instruction": "right", "success": self._way < 0.05}


class Listening:
    """Acts at random, and would have listened."""

    def __init__(self, env):
        self._random = make_policy("random", env)
        self.reset, self.act = self._random.reset, self._random.act


class Model(PointMassWorldModel):
    tokenizer = range(2)

    def encode(self, frames):
        return super().encode(np.asarray(frames))

    def tokenize(self, instructions):
        return torch.ones(len(instructions), 2, dtype=torch.long)


def recorded(folder, ends):
    env = FrameSkip(NearEnv(ends), SKIP)
    spec = StoreSpec("near", SKIP, (SIZE, SIZE), (-1.0, -1.0), (1.0, 1.0), proprio_size=2)
    with EpisodeStore.create(folder, spec) as store:
        for seed in range(24):
            store.append(record_episode(env, Listening(env), seed, EpisodeSource()))
    return EpisodeStore.open(folder)


@pytest.mark.parametrize("ends", [True, False])
def test_whether_success_ends_an_episode_is_read_off_the_data(tmp_path, ends):
    store = recorded(tmp_path / "data", ends)
    assert any(episode.successes.any() for episode in store)
    assert success_ends(store) == ends


def test_imagined_rewards_are_the_simulators_in_size_and_place(tmp_path):
    store, model = recorded(tmp_path / "data", False), Model()
    table = FrameTable.from_store(store, "cpu").encoded(model)
    how = Optimisation(steps=1, batch_size=32, learning_rate=1e-3)
    draw = outcome_batches(table, model, OutcomeHeadRecipe(latent_noise=0.0, optimisation=how))
    torch.manual_seed(0)
    head = OutcomeHead(
        latent_channels=3,
        latent_side=SIZE,
        vocab_size=2,
        hidden_size=8,
        num_blocks=1,
        reward_scale=float(table.rewards.std()),
        success_ends=success_ends(store),
    )
    objective = OutcomeObjective(head)
    optimiser = torch.optim.Adam(head.parameters(), lr=2e-2)
    # To the end of learning, where processors that round differently come out alike.
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=240)
    generator = torch.Generator().manual_seed(0)
    for _ in range(240):
        loss = objective(*draw(generator))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()

    env, num_successes = FrameSkip(NearEnv(False), SKIP), 0
    found, expected = [], []
    for seed in range(100, 106):
        env.reset(seed=seed)
        # Now to the line, and over it, for which nothing ends.
        actions = np.random.default_rng(seed).uniform(-0.4, 1, (NUM_FRAMES, 2)).astype(np.float32)
        start = Start(env.render()[None], "right")
        worlds = WorldModelVectorEnv(model, lambda rng, start=start: start, 1, outcome_head=head)
        worlds.reset(seed=seed)
        for action in actions:
            _, reward, terminated, _, info = env.step(action)
            num_successes += info["success"]
            expected.append(reward)
            _, rewards, terminations, _, _ = worlds.step(action[None])
            found.append(float(rewards[0]))
            assert not terminated
            assert not terminations[0]
    assert num_successes > 10
    residuals = np.subtract(found, expected)
    assert np.abs(residuals).mean() < 0.6 * np.std(expected)
    # In the simulator's units: the sum over the held steps.
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.4 * np.std(expected))
