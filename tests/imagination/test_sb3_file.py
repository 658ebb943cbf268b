"""SB3's files, against SB3's own loading of them."""

import base64
import io
import json
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict

from sfvgen_planner.errors import SfvgenError

sb3 = pytest.importorskip("stable_baselines3")

from sfvgen_planner.imagination.sb3_file import load_sb3  # noqa: E402

PICTURE = Box(0, 255, (36, 36, 3), np.uint8)
VECTOR = Box(-np.inf, np.inf, (3,), np.float32)
BOTH = Dict({"image": PICTURE, "vector": VECTOR})
ACTIONS = Box(np.float32([-1, -2]), np.float32([1, 3]))
SETTINGS = {
    "PPO": {"n_steps": 2, "batch_size": 2},
    "SAC": {"buffer_size": 2},
    "A2C": {"n_steps": 2},
}


class SomeEnv(gym.Env):
    """Nothing happens in it."""

    def __init__(self, shown):
        self.observation_space, self.action_space = shown, ACTIONS

    def reset(self, **kwargs):
        return self.observation_space.sample(), {}


def saved(folder, algorithm="PPO", policy="MlpPolicy", shown=VECTOR, **kwargs):
    settings = SETTINGS[algorithm] | {"seed": 3} | kwargs
    agent = getattr(sb3, algorithm)(policy, SomeEnv(shown), **settings)
    agent.save(folder / "agent.zip")
    return folder / "agent.zip"


def changed(path, name, content):
    """The file with another member of this name."""
    with ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with ZipFile(path, "w") as archive:
        for member, old in members.items():
            archive.writestr(member, content if member == name else old)
    return path


@pytest.mark.parametrize(
    ("policy", "shown"),
    [("CnnPolicy", PICTURE), ("MlpPolicy", VECTOR), ("MultiInputPolicy", BOTH)],
    ids=["picture", "vector", "dict"],
)
@pytest.mark.parametrize(
    ("algorithm", "use_sde"), [("PPO", False), ("PPO", True), ("SAC", False), ("SAC", True)]
)
def test_acts_as_what_sb3_loads(tmp_path, algorithm, use_sde, policy, shown):
    kwargs = {"net_arch": [4]}
    if policy == "CnnPolicy":
        kwargs["features_extractor_kwargs"] = {"features_dim": 4}
    path = saved(tmp_path, algorithm, policy, shown, policy_kwargs=kwargs, use_sde=use_sde)
    own = getattr(sb3, algorithm).load(path)
    found = load_sb3(path, [PICTURE, VECTOR, BOTH], ACTIONS)
    assert found.observation_space == own.observation_space
    assert found.action_space == own.action_space
    shown.seed(0)
    for _ in range(5):
        observation = shown.sample()
        expected, _ = own.predict(observation, deterministic=True)
        assert np.array_equal(found.predict(observation, deterministic=True)[0], expected)


class Bomb:
    """Runs code where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_no_pickle_is_opened(tmp_path):
    path, mark = saved(tmp_path), tmp_path / "mark"
    with ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    pickled = [name for name, value in data.items() if ":serialized:" in str(value)]
    assert {"policy_class", "observation_space", "action_space"} < set(pickled)
    for name in pickled:
        data[name][":serialized:"] = base64.b64encode(pickle.dumps(Bomb(mark))).decode()
    changed(path, "data", json.dumps(data))
    assert load_sb3(path, [VECTOR], ACTIONS).observation_space == VECTOR
    assert not mark.exists()
    with suppress(Exception):
        sb3.PPO.load(path)
    assert mark.exists()  # SB3's own loading does open them.


def test_weights_that_are_more_than_tensors_are_refused(tmp_path):
    mark, stream = tmp_path / "mark", io.BytesIO()
    torch.save({"log_std": Bomb(mark)}, stream)
    path = changed(saved(tmp_path), "policy.pth", stream.getvalue())
    with pytest.raises(SfvgenError, match="holds more than tensors") as told:
        load_sb3(path, [VECTOR], ACTIONS)
    assert "weights_only" not in str(told.value)
    assert not mark.exists()


def test_what_learnt_elsewhere_is_refused(tmp_path):
    path = saved(tmp_path)
    with pytest.raises(SfvgenError, match=r"other observations \(Box \[3\] float32 .* or Dict\("):
        load_sb3(path, [PICTURE, BOTH], ACTIONS)
    for actions in (Box(-1, 1, (2,)), Box(-1, 1, (3,)), gym.spaces.Discrete(2)):
        with pytest.raises(SfvgenError, match=r"other actions \(Box \[2\] float32 \[-1. -2.\]"):
            load_sb3(path, [VECTOR], actions)


@pytest.mark.parametrize(
    ("algorithm", "kwargs", "message"),
    [
        ("A2C", {}, "neither PPO nor SAC"),
        ("PPO", {"policy_kwargs": {"activation_fn": torch.nn.ReLU}}, "plain policy_kwargs"),
        ("SAC", {"policy_kwargs": {"activation_fn": torch.nn.Tanh}}, "plain policy_kwargs"),
    ],
)
def test_other_algorithms_and_networks_are_refused(tmp_path, algorithm, kwargs, message):
    path = saved(tmp_path, algorithm, **kwargs)
    with pytest.raises(SfvgenError, match=message):
        load_sb3(path, [VECTOR], ACTIONS)


@pytest.mark.parametrize("policy_kwargs", [{"net_arch": [3]}, {"squash_output": True}])
def test_settings_that_the_weights_do_not_fit_are_refused(tmp_path, policy_kwargs):
    path = saved(tmp_path)
    with ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    data["policy_kwargs"] = policy_kwargs
    changed(path, "data", json.dumps(data))
    with pytest.raises(SfvgenError, match=r"holds no PPO model with .* own MlpPolicy"):
        load_sb3(path, [VECTOR], ACTIONS)


@pytest.mark.parametrize(
    "data", ["[]", "{}", "{", '{"observation_space": 1, "action_space": {}, "policy_kwargs": {}}']
)
def test_a_damaged_file_is_one_sentence(tmp_path, data):
    path = changed(saved(tmp_path), "data", data)
    with pytest.raises(SfvgenError, match="is no file that a model of Stable-Baselines3"):
        load_sb3(path, [VECTOR], ACTIONS)


def test_damaged_weights_are_one_sentence(tmp_path):
    path = changed(saved(tmp_path), "policy.pth", b"")
    with pytest.raises(SfvgenError, match="is no file that a model of Stable-Baselines3"):
        load_sb3(path, [VECTOR], ACTIONS)
    stream = io.BytesIO()
    torch.save({3: torch.zeros(1)}, stream)
    changed(path, "policy.pth", stream.getvalue())
    with pytest.raises(SfvgenError, match="holds no PPO model"):
        load_sb3(path, [VECTOR], ACTIONS)


def test_a_file_that_is_no_zip_or_missing_is_one_sentence(tmp_path):
    (tmp_path / "text.zip").write_text("text")
    for name in ("text.zip", "missing.zip"):
        with pytest.raises(SfvgenError, match=f"{name} is no file that a model"):
            load_sb3(tmp_path / name, [VECTOR], ACTIONS)


def test_a_missing_sb3_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "sfvgen_planner.imagination.sb3_file")
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(SfvgenError, match=r"sfvgen-planner\[sb3\]"):
        import sfvgen_planner.imagination.sb3_file  # noqa: F401
