"""Checkpoints by their Hub id, without the network."""

import shutil
from pathlib import Path

import diffusers.utils.hub_utils as hub_utils
import gymnasium as gym
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.cli.main import main
from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.imagination import WorldModelEnv
from sfvgen_planner.memory import EpisodicMemory
from sfvgen_planner.planning import VideoPlanner
from sfvgen_planner.world_model import VideoWorldModel, load_world_model, tiny_world_model
from sfvgen_planner.world_model.checkpoint import check_folder
from sfvgen_planner.world_model.hub import local_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = ["*.json", "*.safetensors", "*.txt", "*.md"]


@pytest.fixture
def calls(tiny_checkpoint, monkeypatch):
    """What is asked of the Hub, which gives the tiny checkpoint."""
    asked = []

    def download(repo_id, **options):
        asked.append((repo_id, options))
        return str(tiny_checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


@pytest.fixture
def cache(tiny_checkpoint, tmp_path, monkeypatch):
    """The Hub's own cache with `user/tiny` in it, as a download leaves it; no network."""
    repository = tmp_path / "hub/models--user--tiny"
    snapshot = repository / "snapshots" / COMMIT
    for index, path in enumerate(p for p in tiny_checkpoint.rglob("*") if p.is_file()):
        blob = repository / f"blobs/{index}"
        link = snapshot / path.relative_to(tiny_checkpoint)
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def same_weights(model, other):
    found, expected = model.unet.state_dict(), other.unet.state_dict()
    return all(torch.equal(found[name], value) for name, value in expected.items())


def test_all_that_is_loaded_by_name_takes_a_hub_id(calls):
    model = VideoWorldModel.from_pretrained("user/tiny")
    assert same_weights(model, tiny_world_model())
    assert same_weights(load_world_model("user/tiny@v1.0"), model)
    EpisodicMemory.from_pretrained(model, "user/tiny@refs/pr/1").detach()
    VideoPlanner.from_pretrained("user/tiny")
    plain = {"allow_patterns": FILES}
    assert calls == [
        ("user/tiny", plain),
        ("user/tiny", {**plain, "revision": "v1.0"}),
        ("user/tiny", {**plain, "revision": "refs/pr/1"}),
        ("user/tiny", plain),
    ]


def test_options_of_the_download_are_diffusers_own(calls):
    model = VideoWorldModel.from_pretrained(
        "user/tiny", revision="v1.0", token="secret", cache_dir="there", num_future_frames=3
    )
    assert model.config.num_future_frames == 3
    asked = {"revision": "v1.0", "token": "secret", "cache_dir": "there", "allow_patterns": FILES}
    assert calls == [("user/tiny", asked)]
    with pytest.raises(SfvgenError, match="user/tiny@v2 has the revision v1 too"):
        VideoWorldModel.from_pretrained("user/tiny@v2", revision="v1")
    VideoWorldModel.from_pretrained("user/tiny@v1", revision="v1")


def test_folders_and_shipped_names_go_before_the_hub(calls, tiny_checkpoint, tmp_path, monkeypatch):
    shutil.copytree(tiny_checkpoint, tmp_path / "user/tiny")
    monkeypatch.chdir(tmp_path)
    VideoWorldModel.from_pretrained("user/tiny", revision="v1.0")
    load_world_model("user/tiny")
    VideoPlanner.from_pretrained("tabletop")
    for name in ("nothing", "a/b/c", "../a", "/a/b", Path("user/nothing")):
        with pytest.raises(SfvgenError, match="no model called"):
            load_world_model(name)
        with pytest.raises(SfvgenError, match="no checkpoint folder"):
            VideoWorldModel.from_pretrained(name)
    assert calls == []


def test_an_imagined_world_asks_the_hub_once(calls):
    gym.register("PointMass-v0", entry_point="tests.point_mass:PointMassEnv")
    try:
        env = gym.make("sfvgen/Imagined-v0", model="user/tiny", env_id="PointMass-v0")
    finally:
        del gym.registry["PointMass-v0"]
    assert isinstance(env.unwrapped, WorldModelEnv)
    assert len(calls) == 1
    env.close()


def test_the_hubs_cache_is_enough_without_the_network(cache):
    model = load_world_model("user/tiny")
    assert same_weights(model, tiny_world_model())
    # Where the memory looks by default.
    assert Path(model.name_or_path).samefile(cache)
    EpisodicMemory.from_pretrained(model).detach()
    assert load_world_model(f"user/tiny@{COMMIT}").config == model.config


def test_a_download_is_checked_like_any_folder(cache):
    weights = cache / "unet/diffusion_pytorch_model.safetensors"
    blob = weights.resolve()
    blob.write_bytes(blob.read_bytes()[:-100])
    with pytest.raises(SfvgenError, match=r"safetensors is cut short"):
        load_world_model("user/tiny")
    weights.unlink()
    with pytest.raises(SfvgenError, match=r"lacks the file unet/diffusion"):
        load_world_model("user/tiny")


@pytest.mark.parametrize("name", ["user/nothing", "user/tiny@no-such-branch", "user/a--b"])
def test_what_the_hub_does_not_give_ends_in_one_sentence(cache, name, capsys):
    with pytest.raises(SfvgenError, match=f"no folder {name}, and the Hugging Face Hub gives no"):
        local_folder(name)
    assert main(["eval", "speed", "--model", name, "--out", str(cache / "out.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "check the name and the network" in error


def test_any_failure_of_a_download_is_told(monkeypatch):
    def fail(repo_id, **options):
        raise RuntimeError("the line went dead\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SfvgenError, match=r"\(RuntimeError: the line went dead\)"):
        load_world_model("user/tiny")


def test_a_head_is_a_subfolder_as_diffusers_has_it(tiny_checkpoint):
    head = InverseDynamics.from_pretrained(tiny_checkpoint, subfolder="inverse_dynamics")
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    expected = VideoPlanner.from_pretrained(tiny_checkpoint).inverse_dynamics
    assert np.array_equal(head.predict(frames, frames), expected.predict(frames, frames))


@pytest.mark.parametrize("way", ["save_pretrained", "push_to_hub"])
def test_what_is_pushed_is_a_whole_checkpoint(way, tmp_path, monkeypatch):
    class Repository:
        def __init__(self, repo_id, **options):
            self.repo_id = repo_id

    def upload(repo_id, folder_path, **options):
        shutil.copytree(folder_path, tmp_path / "pushed" / repo_id)

    monkeypatch.setattr(hub_utils, "create_repo", Repository)
    monkeypatch.setattr(hub_utils, "upload_folder", upload)
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *_, **__: ModelCard("Hello"))
    model = tiny_world_model()
    if way == "push_to_hub":
        model.push_to_hub("user/tiny")
    else:
        model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="user/tiny")
    pushed = tmp_path / "pushed/user/tiny"
    assert (pushed / "manifest.json").is_file()
    check_folder(pushed)
    assert "library_name: diffusers" in (pushed / "README.md").read_text()
    assert same_weights(VideoWorldModel.from_pretrained(pushed), model)


def test_pickles_are_not_saved(tmp_path):
    with pytest.raises(SfvgenError, match="safetensors only"):
        tiny_world_model().save_pretrained(tmp_path / "model", safe_serialization=False)
    assert not (tmp_path / "model").exists()
