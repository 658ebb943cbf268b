"""The slow-fast loop in a live environment."""

import json
import multiprocessing
import os
import signal
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sfvgen_planner.cli.main import main
from sfvgen_planner.data import EpisodeStore, collect
from sfvgen_planner.data.episode import EpisodeSource
from sfvgen_planner.data.player import EpisodeTask
from sfvgen_planner.memory.adapter import Adapters
from sfvgen_planner.memory.adapter_files import write_adapter
from sfvgen_planner.memory.loop import slow_fast_loop
from sfvgen_planner.memory.loop_recipe import LoopRecipe
from sfvgen_planner.memory.slow_fast import LoopBatches
from sfvgen_planner.planning.online import RememberingPlayer
from sfvgen_planner.world_model import load_world_model
from sfvgen_planner.world_model.models import load_models, save_checkpoint
from tests.data.counting_env import COUNTING
from tests.recall_env import NUM_STEPS, RECALL, RecallEnv

RECIPE = """
name: tiny
mixed_precision: "no"
data:
  sources: [{env_id: Unused-v0, policy: expert, episodes: 1}]
memory: {rank: 2, num_time_codes: 2, num_noise_draws: 1}
recalls: {"^return": 1.0}
stages:
  - max_chunks: 1
    num_memories: 2
    samples_per_memory: 1
    optimisation:
      {steps: 2, batch_size: 4, learning_rate: 1.0e-2, warmup_steps: 0, checkpoint_every: 1}
"""
POLICY = "tests.recall_env:ListeningPolicy"
POLICY_KWARGS = {"std": 0.5}
DATA_STEPS = 100
SEED = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_checkpoint):
    """A recipe, and a model with a memory that has learnt nothing yet."""
    folder = tmp_path_factory.mktemp("online")
    (folder / "recipe.yaml").write_text(RECIPE)
    models = load_models(tiny_checkpoint)
    models.world_model.register_to_config(data_steps=DATA_STEPS)
    config = LoopRecipe.load(folder / "recipe.yaml").memory_config
    adapters = Adapters(models.world_model, config, seed=0)
    tensors = {name: value.clone() for name, value in adapters.tensors().items()}
    adapters.detach()
    save_checkpoint(
        models, folder / "init", lambda path: write_adapter(path / "memory", adapters, tensors)
    )
    return folder


def online(folder, out, rounds=2, **changes):
    options = {
        "recipe": folder / "recipe.yaml",
        "out": out,
        "env": RECALL,
        "policy": POLICY,
        "episodes": 2,
        "rounds": rounds,
        "seed": SEED,
        "policy-kwargs": json.dumps(POLICY_KWARGS),
        "init-from": folder / "init",
        **changes,
    }
    return main(["online", *(f"--{name}={value}" for name, value in options.items())])


@pytest.fixture(scope="module")
def whole(folder):
    """A run of two rounds that was never stopped."""
    assert online(folder, folder / "whole") == 0
    return folder / "whole"


def weights(checkpoint):
    files = ("unet/diffusion_pytorch_model", "memory/adapter_model")
    return {
        name: value
        for file in files
        for name, value in load_file(checkpoint / f"{file}.safetensors").items()
    }


def same_weights(one, other):
    own, others = weights(one), weights(other)
    return own.keys() == others.keys() and all(map(torch.equal, own.values(), others.values()))


def same_runs(one, other):
    stores = EpisodeStore.open(one / "data"), EpisodeStore.open(other / "data")
    return stores[0].entries == stores[1].entries and all(
        same_weights(one / f"round_{index}/model", other / f"round_{index}/model")
        for index in (0, 1)
    )


def test_the_episodes_are_in_the_store_with_what_the_memory_learnt(whole):
    store = EpisodeStore.open(whole / "data")
    assert [episode.seed for episode in store] == [SEED, SEED + 1, SEED + 2, SEED + 3]
    for episode in store:
        assert episode.source == EpisodeSource(POLICY, POLICY_KWARGS)
        assert set(episode.instructions) == {"put it away", "return it"}
        assert "memory_write" not in episode.info
        # Chunks of 8 frames.
        writes = episode.info["memory_writes"]
        assert len(writes) == NUM_STEPS // 8
        assert all(write["loss_without"] > 0 for write in writes)


def played(checkpoint, source, seed):
    player = RememberingPlayer(RECALL, checkpoint, torch.device("cpu"))
    try:
        return player.play(EpisodeTask(source, seed))
    finally:
        player.close()


def test_each_round_s_memories_learn_on_the_last_round_s_model(folder, whole):
    third = EpisodeStore.open(whole / "data")[2]
    first, other = (
        played(path, third.source, third.seed)
        for path in (whole / "round_0/model", folder / "init")
    )
    assert first.info == third.info
    assert other.info["memory_writes"] != third.info["memory_writes"]


def test_the_planner_plans_with_the_present_model(folder, whole):
    source = EpisodeSource("planner", {"num_inference_steps": 1, "guidance_scale": 1.0})
    before, after = (
        played(path, source, SEED) for path in (folder / "init", whole / "round_0/model")
    )
    assert set(after.instructions) == {"put it away", "return it"}
    assert not np.array_equal(before.actions, after.actions)


def test_each_round_is_the_loop_over_all_episodes_from_the_last_one_s_model(folder, whole):
    first, second = whole / "round_0/model", whole / "round_1/model"
    recipe = LoopRecipe.load(folder / "recipe.yaml")
    again = slow_fast_loop(recipe, whole / "data", folder / "offline", first)
    assert same_weights(again, second)
    for before, after in ((folder / "init", first), (first, second)):
        own, others = weights(before), weights(after)
        for part in ("lora_B", "temp_convs"):
            assert any(not torch.equal(others[n], value) for n, value in own.items() if part in n)


def test_every_step_counts_once_in_the_models_data(whole):
    counted = [load_world_model(whole / f"round_{k}/model").config.data_steps for k in (0, 1)]
    assert counted == [DATA_STEPS + 2 * NUM_STEPS, DATA_STEPS + 4 * NUM_STEPS]


def stop_at(patch, moments, stop):
    """Call `stop` at these moments: `step` or `batch`, and how many of them have begun."""
    counter = Counter()

    def counted(name, function):
        def counting(*args):
            counter[name] += 1
            if (name, counter[name]) in moments:
                stop()
            return function(*args)

        return counting

    patch.setattr(RecallEnv, "step", counted("step", RecallEnv.step))
    patch.setattr(LoopBatches, "__call__", counted("batch", LoopBatches.__call__))
    return counter


def run_until_killed(folder, out, moment):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, [moment], lambda: os.kill(os.getpid(), signal.SIGKILL))
        online(folder, out)


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: tests that a shell runs in the background would ignore it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interruptible")
def test_a_stopped_run_goes_on_as_if_it_had_not_been(folder, whole, tmp_path, monkeypatch, capsys):
    in_second_episode, in_second_step = ("step", NUM_STEPS + 3), ("batch", 2)
    counter = stop_at(monkeypatch, [in_second_episode], lambda: signal.raise_signal(signal.SIGINT))
    assert online(folder, tmp_path) == 130
    assert "the same command goes on from here: sfvgen online" in capsys.readouterr().err
    assert len(EpisodeStore.open(tmp_path / "data")) == 1

    process = multiprocessing.get_context("forkserver").Process(
        target=run_until_killed, args=(folder, tmp_path, in_second_step)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert len(EpisodeStore.open(tmp_path / "data")) == 2

    assert online(folder, tmp_path, rounds=1) == 0
    # A finished run goes on with more rounds.
    assert online(folder, tmp_path) == 0
    # What was finished is not done again: the killed process left one step of the first round.
    assert counter == {"step": NUM_STEPS + 3 + 2 * NUM_STEPS, "batch": 1 + 2}
    assert same_runs(tmp_path, whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "num_rounds must be at least 1"),
        ({"episodes": 0}, "episodes: Input should be greater than or equal to 1"),
        ({"env": "Nothing-v0"}, "cannot make the environment 'Nothing-v0'"),
        ({"env": COUNTING}, "the env's actions have the shape (2,)"),
        ({"policy": "nobody"}, "policy 'nobody' is unknown"),
        ({"policy": "planner"}, "cannot make the policy 'planner'"),
        ({"policy": "random"}, "does not follow instructions"),
        ({"set": "memory.rank=1"}, "a memory with other settings than the recipe tiny"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(folder, tmp_path, capsys, changes, message):
    out = tmp_path / "out"
    assert online(folder, out, **changes) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert not out.exists()


def test_without_a_memory_there_is_nothing_to_consolidate(
    folder, tiny_checkpoint, tmp_path, capsys
):
    assert online(folder, tmp_path / "out", **{"init-from": tiny_checkpoint}) == 2
    assert "has no memory" in capsys.readouterr().err
    lines = [line for line in RECIPE.splitlines() if not line.startswith("memory:")]
    recipe = tmp_path / "none.yaml"
    recipe.write_text("\n".join(["variant: none", "context: anchor_frame", *lines]))
    assert online(folder, tmp_path / "out", recipe=recipe) == 2
    assert "variant none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_run_s_folder_is_refused(folder, whole, tmp_path, capsys):
    assert online(folder, whole, episodes=3) == 2
    assert "episodes = 2, but 3 was asked for" in capsys.readouterr().err
    collect(RECALL, "random", 1, tmp_path / "data", image_size=32, progress=False)
    assert online(folder, tmp_path) == 2
    assert "image_size = (32, 32), but (64, 64)" in capsys.readouterr().err


def test_several_processes_are_refused(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sfvgen_planner.planning.online.begin_training",
        lambda *_: SimpleNamespace(num_processes=2),
    )
    assert online(folder, tmp_path / "out") == 2
    assert "without a launcher" in capsys.readouterr().err


def test_another_recipe_is_refused(folder, whole, capsys):
    assert online(folder, whole, set="recall_share=0.25") == 2
    assert "recipe.recall_share = None, but 0.25 was asked for" in capsys.readouterr().err


def test_episodes_that_no_memory_has_lived_do_not_count(folder, tmp_path, capsys):
    collect = ["--policy", POLICY, "--env", RECALL, "--episodes", "1", "--seed", str(SEED)]
    collect += ["--policy-kwargs", json.dumps(POLICY_KWARGS)]
    assert main(["collect", *collect, "--out", f"{tmp_path}/run/data"]) == 0
    assert online(folder, tmp_path / "run") == 2
    assert f"of the seeds [{SEED}] from elsewhere" in capsys.readouterr().err
