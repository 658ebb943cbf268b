"""What can't be trained is told in one sentence, before any work."""

import json
import re
import shutil

import pytest

from sfvgen_planner.cli.main import main
from tests.training_recipes import OUTCOME_HEAD, RECIPE, TEMPORAL_DISTANCE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("steps: 6", "steps: 0"), "world_model.optimisation.steps"),
        (("name: tiny", "nam: tiny"), "nam"),
        (("data:", "data"), "cannot read the recipe"),
    ],
)
def test_wrong_recipe_is_one_sentence(store, tmp_path, capsys, change, words):
    text = RECIPE.replace("STEPS", "6").replace(*change)
    (tmp_path / "recipe.yaml").write_text(text)
    arguments = ["--data", f"{store}/data", "--out", f"{tmp_path}/run"]
    assert main(["train", "--recipe", f"{tmp_path}/recipe.yaml", *arguments]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_missing_recipe_and_store_are_named(store, tmp_path, capsys):
    recipe, data, out = f"{store}/recipe.yaml", f"{store}/data", f"{tmp_path}/run"
    assert main(["train", "--recipe", "no.yaml", "--data", data, "--out", out]) == 2
    assert "no.yaml" in capsys.readouterr().err
    assert main(["train", "--recipe", recipe, "--data", f"{tmp_path}/no", "--out", out]) == 2
    assert f"{tmp_path}/no" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unwritable_output_is_told_before_any_work(store, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    recipe, data = f"{store}/recipe.yaml", f"{store}/data"
    out = f"{tmp_path}/file/run"
    assert main(["train", "--recipe", recipe, "--data", data, "--out", out]) == 2
    assert "file/run" in capsys.readouterr().err


def test_images_that_do_not_fit_the_autoencoder_are_told(store, tmp_path, capsys):
    arguments = ["--env", "sfvgen/TabletopReturn-v0", "--episodes", "1", "--image-size", "40"]
    arguments += ["--env-kwargs", '{"level": 1, "recall": "none"}']
    assert main(["collect", *arguments, "--out", f"{tmp_path}/data"]) == 0
    recipe, out = f"{store}/recipe.yaml", f"{tmp_path}/run"
    assert main(["train", "--recipe", recipe, "--data", f"{tmp_path}/data", "--out", out]) == 2
    assert "40x40" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_too_short_episodes_are_told_before_any_work(store, tmp_path, capsys):
    arguments = ["--recipe", f"{store}/recipe.yaml", "--data", f"{store}/data"]
    arguments += ["--set", "world_model.num_future_frames=1000", "--out", f"{tmp_path}/run"]
    assert main(["train", *arguments]) == 2
    assert "window of 1004 frames" in capsys.readouterr().err
    assert not (tmp_path / "run/autoencoder").exists()


def test_episodes_shorter_than_the_temporal_distance_are_told_before_any_work(
    store, tmp_path, capsys
):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("STEPS", "1") + TEMPORAL_DISTANCE)
    arguments = ["--recipe", f"{tmp_path}/recipe.yaml", "--data", f"{store}/data"]
    arguments += ["--out", f"{tmp_path}/run", "--set", "temporal_distance.max_frames=1000"]
    assert main(["train", *arguments]) == 2
    assert "lower temporal_distance.max_frames" in capsys.readouterr().err
    assert not (tmp_path / "run/autoencoder").exists()


def test_data_from_before_successes_were_recorded_is_refused_before_any_work(
    store, tmp_path, capsys
):
    shutil.copytree(store / "data", tmp_path / "data")
    index = tmp_path / "data/episodes.jsonl"
    lines = [json.loads(line) | {"successes": None} for line in index.read_text().splitlines()]
    index.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("STEPS", "1") + OUTCOME_HEAD)
    arguments = ["--recipe", f"{tmp_path}/recipe.yaml", "--data", f"{tmp_path}/data"]
    assert main(["train", *arguments, "--out", f"{tmp_path}/run"]) == 2
    assert "info['success']" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["training.lock"]


def test_holding_out_the_only_episode_is_refused(store, tmp_path, capsys):
    recipe = RECIPE.replace("STEPS", "5").replace("world_model:", "world_model:\n  eval_every: 2")
    (tmp_path / "recipe.yaml").write_text(recipe.replace("episodes: 3", "episodes: 1"))
    arguments = ["--recipe", f"{tmp_path}/recipe.yaml"]
    assert main(["collect", *arguments, "--out", f"{tmp_path}/data"]) == 0
    arguments += ["--data", f"{tmp_path}/data", "--out", f"{tmp_path}/run"]
    assert main(["train", *arguments]) == 2
    assert "collect more episodes" in capsys.readouterr().err


def test_episodes_to_hold_out_are_looked_at_before_any_work(tmp_path, capsys):
    recipe, few = tmp_path / "recipe.yaml", tmp_path / "few.yaml"
    recipe.write_text(RECIPE.replace("STEPS", "6") + OUTCOME_HEAD)
    few.write_text(recipe.read_text().replace("episodes: 3", "episodes: 1"))
    assert main(["collect", "--recipe", f"{few}", "--out", f"{tmp_path}/data"]) == 0
    arguments = ["--recipe", f"{recipe}", "--data", f"{tmp_path}/data", "--out", f"{tmp_path}/run"]
    assert main(["train", *arguments]) == 2
    assert "one episode can't be held out of only one" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["training.lock"]
