import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from sfvgen_planner.data import (
    DataRecipe,
    Episode,
    EpisodeSource,
    EpisodeStore,
    FrameSkip,
    collect,
    collect_recipe,
)
from sfvgen_planner.data.recipe import validated
from sfvgen_planner.data.rollout import checked_action, record_episode
from sfvgen_planner.errors import SfvgenError
from tests.data.counting_env import (
    COUNTING,
    SCRIPTED,
    CountingEnv,
    ScriptedPolicy,
    expected_actions,
    expected_frame,
    expected_success,
    num_steps,
)

ROOT = Path(__file__).parents[2]


def assert_true_to_env(episode: Episode, seed: int, size: int = 8, skip: int = 1) -> None:
    """Compare with what the environment and the policy do by their definition."""
    assert episode.seed == seed
    count, actions = num_steps(seed), expected_actions(seed)
    counts = [0, *[min(count, skip * (i + 1)) for i in range(len(episode))]]
    assert counts[-1] == count
    assert counts[-2] < count
    np.testing.assert_array_equal(episode.actions, actions[: len(episode)])
    for i, step in enumerate(counts):
        action = actions[i - 1] if i else np.zeros(2)
        np.testing.assert_array_equal(episode.frames[i], expected_frame(seed, step, action, size))
    assert episode.proprio is not None
    np.testing.assert_array_equal(episode.proprio, [[seed, step] for step in counts])
    assert episode.instructions == ["begin" if step < 3 else "go on" for step in counts[:-1]]
    held = [sum(range(a + 1, b + 1)) for a, b in itertools.pairwise(counts)]
    np.testing.assert_array_equal(episode.rewards, held)
    assert episode.terminated
    assert not episode.truncated


def same(left: EpisodeStore, right: EpisodeStore) -> bool:
    return left.entries == right.entries and all(
        np.array_equal(a.frames, b.frames) and np.array_equal(a.actions, b.actions)
        for a, b in zip(left, right, strict=True)
    )


def test_episodes_are_what_the_environment_did(tmp_path: Path) -> None:
    store = collect(COUNTING, SCRIPTED, 4, tmp_path / "store", seed=3, progress=False)
    assert len(store) == 4
    for i, episode in enumerate(store):
        assert_true_to_env(episode, seed=3 + i)


def test_info_keeps_what_json_can_hold(tmp_path: Path) -> None:
    store = collect(COUNTING, SCRIPTED, 1, tmp_path / "store", progress=False)
    assert store[0].info == {"instruction": "go on", "distance_m": 0.25, "where": [1.0, None]}
    assert store[0].source.policy == SCRIPTED


@pytest.mark.parametrize("key", ["success", "is_success"])
@pytest.mark.parametrize("skip", [1, 4])
def test_successes_belong_to_the_frame_after_each_step(tmp_path: Path, key: str, skip: int) -> None:
    kwargs = {"success_key": key}
    store = collect(
        COUNTING, SCRIPTED, 3, tmp_path / "s", frame_skip=skip, env_kwargs=kwargs, progress=False
    )
    for episode in store:
        counts = episode.proprio[1:, 1]  # type: ignore[index]
        assert episode.successes is not None
        assert episode.successes.tolist() == [expected_success(int(count)) for count in counts]


def test_an_environment_that_does_not_tell_has_no_successes(tmp_path: Path) -> None:
    assert collect(COUNTING, SCRIPTED, 1, tmp_path / "s", progress=False)[0].successes is None


def test_frame_skip_holds_actions_and_image_size_resizes(tmp_path: Path) -> None:
    store = collect(
        COUNTING, SCRIPTED, 3, tmp_path / "store", frame_skip=4, image_size=5, progress=False
    )
    for seed, episode in enumerate(store):
        assert_true_to_env(episode, seed, size=5, skip=4)
    assert store.spec.frame_skip == 4
    assert store.spec.image_size == (5, 5)


@pytest.mark.parametrize("num_workers", [2, 3])
def test_any_number_of_workers_gives_the_same(tmp_path: Path, num_workers: int) -> None:
    one = collect(COUNTING, SCRIPTED, 12, tmp_path / "one", progress=False)
    many = collect(
        COUNTING, SCRIPTED, 12, tmp_path / "many", num_workers=num_workers, progress=False
    )
    assert same(one, many)


def test_workers_close_their_environments(tmp_path: Path) -> None:
    log = tmp_path / "closed"
    kwargs = {"closed_file": str(log)}
    collect(COUNTING, SCRIPTED, 6, tmp_path / "s", num_workers=2, env_kwargs=kwargs, progress=False)
    closed_by = set(map(int, log.read_text().split()))
    # The process that looks first, and both workers.
    assert os.getpid() in closed_by
    assert len(closed_by) == 3


def test_more_episodes_and_other_sources_are_appended(tmp_path: Path) -> None:
    def recipe(first: int, second: int) -> DataRecipe:
        source = {"env_id": COUNTING, "policy": SCRIPTED}
        sources = [{**source, "episodes": first}]
        if second:
            sources.append({**source, "policy": "random", "episodes": second, "seed": 50})
        return validated(DataRecipe, {"sources": sources}, "test")

    out = tmp_path / "store"
    collect_recipe(recipe(2, 0), out, progress=False)
    collect_recipe(recipe(2, 3), out, progress=False)
    store = collect_recipe(recipe(4, 3), out, progress=False)
    assert [episode.seed for episode in store] == [0, 1, 50, 51, 52, 2, 3]
    assert [episode.source.policy for episode in store] == [SCRIPTED] * 2 + ["random"] * 3 + [
        SCRIPTED
    ] * 2
    assert same(store, collect_recipe(recipe(4, 3), out, progress=False))


def test_store_of_other_settings_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "store"
    collect(COUNTING, SCRIPTED, 1, out, progress=False)
    with pytest.raises(SfvgenError, match=r"image_size = \(8, 8\), but \(16, 16\) was asked for"):
        collect(COUNTING, SCRIPTED, 2, out, image_size=16, progress=False)
    with pytest.raises(SfvgenError, match="frame_skip = 1, but 2"):
        collect(COUNTING, SCRIPTED, 2, out, frame_skip=2, progress=False)
    assert len(EpisodeStore.open(out)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "Nothing-v0"}, "cannot make the environment 'Nothing-v0'"),
        ({"env_id": "no_module:Nothing-v0"}, "No module named 'no_module'"),
        ({"env_id": "tests.data.counting_env:Discrete-v0"}, r"has the action space Discrete\(3\)"),
        ({"env_id": "tests.data.counting_env:Unbounded-v0"}, "a bounded vector of floats"),
        ({"env_id": "tests.data.counting_env:Blind-v0"}, "render_mode='rgb_array'"),
        ({"env_kwargs": {"colour": 1}}, "unexpected keyword argument 'colour'"),
        (
            {"env_id": "Ant-v5", "env_kwargs": {"xml_file": "nope.xml"}},
            "cannot make the environment 'Ant-v5' with .*nope.xml",
        ),
        ({"env_kwargs": {"size": {1, 2}}}, "only JSON values can be stored"),
        ({"policy": "nobody"}, "policy 'nobody' is unknown"),
        ({"policy_kwargs": {"mood": 1}}, "mood"),
        ({"num_episodes": 0}, "episodes: .*greater than or equal to 1"),
        ({"num_workers": 0}, "num_workers must be at least 1"),
        ({"image_size": 0}, "image_size: .*greater than or equal to 1"),
        ({"out": "/proc/self/nothing/store"}, "cannot make the folder"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    defaults = {"env_id": COUNTING, "policy": SCRIPTED, "num_episodes": 1, "out": tmp_path / "new"}
    with pytest.raises(SfvgenError, match=message) as caught:
        collect(**{**defaults, **arguments}, progress=False)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("nan", "must be a finite number"),
        ("range", r"must lie between \[-1.0, -1.0\] and \[1.0, 1.0\]"),
        ("shape", r"has shape \(3,\), but the environment takes \(2,\)"),
    ],
)
def test_wrong_actions_are_named(
    tmp_path: Path, spoil: str, message: str, num_workers: int
) -> None:
    with pytest.raises(SfvgenError, match=f"seed 0: the policy's action at step 2 .*{message}"):
        collect(
            COUNTING,
            SCRIPTED,
            2,
            tmp_path / "store",
            num_workers=num_workers,
            policy_kwargs={"spoil": spoil},
            progress=False,
        )


@pytest.mark.parametrize(
    "action", ["abc", {"x": 1.0}, [[1.0], [1.0, 2.0]], torch.zeros(2, requires_grad=True)]
)
def test_actions_that_are_no_numbers_are_named(action: object) -> None:
    space = gym.spaces.Box(-1, 1, (2,))
    with pytest.raises(SfvgenError, match=r"action at step 7 must be \(2,\) finite numbers, got"):
        checked_action(action, space, 7)


class OddEnv(CountingEnv):
    """Its rewards are arrays of one, or its pictures grow."""

    def __init__(self, growth: int) -> None:
        super().__init__("rgb_array")
        self.growth = growth

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        self.size += self.growth
        observation, reward, *rest = super().step(action)
        return observation, reward if self.growth else np.array([reward]), *rest


@pytest.mark.parametrize("frame_skip", [1, 2])
@pytest.mark.parametrize(
    ("growth", "message"),
    [
        (0, r"the environment's reward is array\(\[1.\]\), but it must be a number"),
        (1, r"picture after step 1 has shape \(\d+, \d+, 3\), but the first had \(8, 8, 3\)"),
    ],
)
def test_what_no_episode_can_hold_is_named(growth: int, message: str, frame_skip: int) -> None:
    env = OddEnv(growth) if frame_skip == 1 else FrameSkip(OddEnv(growth), frame_skip)
    with pytest.raises(SfvgenError, match=message):
        record_episode(env, ScriptedPolicy(env), 0, EpisodeSource())
    if growth:
        assert len(record_episode(env, ScriptedPolicy(env), 0, EpisodeSource(), image_size=8)) > 1


@pytest.mark.parametrize("flags", [(True, False), (False, True)])
def test_the_end_of_an_episode_cuts_a_hold_short(flags: tuple[bool, bool]) -> None:
    class Ending(CountingEnv):
        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            observation, reward, over, _, info = super().step(action)
            return observation, reward, over and flags[0], over and flags[1], info

    env = FrameSkip(Ending("rgb_array"), num_steps(0) - 1)
    env.reset(seed=0)
    env.step(np.zeros(2, np.float32))
    observation, reward, *ends, _ = env.step(np.zeros(2, np.float32))
    assert (observation[1], reward, tuple(ends)) == (num_steps(0), num_steps(0), flags)


def test_death_of_a_worker_keeps_the_episodes_before(tmp_path: Path) -> None:
    with pytest.raises(SfvgenError, match=r"a worker process died \(exit code 3\)"):
        collect(
            COUNTING,
            SCRIPTED,
            40,
            tmp_path / "store",
            num_workers=2,
            env_kwargs={"fatal_seed": 30},
            progress=False,
        )
    for seed, episode in enumerate(EpisodeStore.open(tmp_path / "store")):
        assert_true_to_env(episode, seed)


def start(out: Path, num_workers: int) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "sfvgen_planner", "collect", "--env", COUNTING),
        *("--policy", SCRIPTED, "--episodes", "60", "--out", str(out)),
        *("--num-workers", str(num_workers), "--env-kwargs", '{"seconds_per_step": 0.005}'),
    ]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs, and so all that they start, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("nothing happened in 30 s")


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_same_command_goes_on_after_an_interruption(
    tmp_path: Path, how: signal.Signals, num_workers: int
) -> None:
    out = tmp_path / "store"
    process = start(out, num_workers)
    index = out / "episodes.jsonl"
    wait_for(lambda: index.exists() and index.read_bytes().count(b"\n") >= 3)
    # As a terminal does it: to all processes of the group.
    os.killpg(process.pid, how)
    _, errors = process.communicate(timeout=30)
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from here: sfvgen collect --env" in errors
        assert "Traceback" not in errors
    left = len(EpisodeStore.open(out))
    assert 3 <= left < 60

    process = start(out, num_workers)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    store = EpisodeStore.open(out)
    assert len(store) == 60
    for seed, episode in enumerate(store):
        assert_true_to_env(episode, seed)


def test_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: other sections do not matter here\n"
        "data:\n"
        "  image_size: 32\n"
        "  sources:\n"
        "    - {env_id: Test-v0, policy: expert, episodes: 3, policy_kwargs: {noise: 0.1}}\n"
    )
    recipe = DataRecipe.load(path)
    assert recipe.image_size == 32
    assert recipe.sources[0].policy_kwargs == {"noise": 0.1}


@pytest.mark.parametrize("is_present", [False, True])
def test_an_empty_folder_that_is_there_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_present: bool
) -> None:
    """Such as a mount point, or the one that the command runs in, which nothing can replace."""
    (tmp_path / "here").mkdir()
    # As a process leaves it that was killed while it made a store here.
    (tmp_path / "here/.store.killed/store").mkdir(parents=True)
    before = (tmp_path / "here").stat().st_ino
    monkeypatch.chdir(tmp_path / "here" if is_present else tmp_path)
    out = Path() if is_present else Path("here")
    source = {"env_id": COUNTING, "policy": SCRIPTED, "episodes": 2}
    recipe = validated(DataRecipe, {"sources": [source]}, "test")
    assert len(collect_recipe(recipe, out)) == recipe.sources[0].episodes
    assert (tmp_path / "here").stat().st_ino == before
    assert len(EpisodeStore.open(tmp_path / "here")) == recipe.sources[0].episodes
    assert [path.name for path in (tmp_path / "here").glob(".store*")] == [".store.killed"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {sources: []}", "data.sources: List should have at least 1 item"),
        ("data: {sources: [{env_id: A-v0, policy: p}]}", "data.sources.0.episodes: Field required"),
        ("data: {sources: [{env_id: A-v0, policy: p, episodes: 1, sed: 1}]}", "sources.0.sed"),
        (
            "data: {sources: [{env_id: A-v0, policy: p, episodes: 3},"
            " {env_id: A-v0, policy: p, episodes: 5, seed: 2}]}",
            "sources 0 and 1 have the same episodes, of the seeds 2 to 2",
        ),
        (
            "data: {sources: [{env_id: A-v0, policy: p, episodes: 1},"
            " {env_id: B-v0, policy: p, episodes: 1}]}",
            "must have the same env_id",
        ),
        ("model: {}", "has no section `data:`"),
        ("data: [", "cannot read the recipe"),
    ],
)
def test_wrong_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(SfvgenError, match=message) as caught:
        DataRecipe.load(path)
    assert str(path) in str(caught.value)


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(SfvgenError, match=r"cannot read the recipe .*nothing\.yaml"):
        DataRecipe.load(tmp_path / "nothing.yaml")


def test_moved_store_is_still_readable(tmp_path: Path) -> None:
    collect(COUNTING, SCRIPTED, 2, tmp_path / "store", progress=False)
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    store = collect(COUNTING, SCRIPTED, 3, tmp_path / "elsewhere", progress=False)
    assert_true_to_env(store[2], 2)
