"""A run's folder belongs to its recipe and its data."""

import json
import shutil

from sfvgen_planner.cli.main import main
from sfvgen_planner.world_model.stages import Stages
from tests.training_recipes import RECIPE

FEW = [
    f"{stage}.optimisation.steps=1" for stage in ("autoencoder", "world_model", "inverse_dynamics")
]


def test_another_run_is_not_gone_on_with(store, tmp_path, capsys):
    def run(*changes, data=store / "data"):
        arguments = ["--recipe", f"{store}/recipe.yaml", "--data", str(data), "--out"]
        return main(["train", *arguments, f"{tmp_path}/run", "--set", *changes])

    def recorded():
        return json.loads((tmp_path / "run/run.json").read_text())["recipe"]

    optimisation = "world_model.optimisation"
    assert run(*FEW) == 0
    record = recorded()
    # What a run may be gone on with.
    longer = [*FEW, f"{optimisation}.steps=2", f"{optimisation}.learning_rate=0.0005", "name=other"]
    assert run(*longer, f"{optimisation}.checkpoint_every=1") == 0
    assert recorded() == record
    (tmp_path / "other.yaml").write_text(RECIPE.replace("episodes: 3", "episodes: 1"))
    collect = ["collect", "--recipe", f"{tmp_path}/other.yaml", "--out", f"{tmp_path}/data"]
    assert main(collect) == 0
    capsys.readouterr()
    for changes, data, words in (
        ([f"{optimisation}.batch_size=3"], "data", f"{optimisation}.batch_size was 2 and is now 3"),
        (["seed=1"], "data", "seed was unset and is now 1"),
        ([], tmp_path / "data", "the episodes of --data are others"),
    ):
        assert run(*longer, *changes, data=store / data) == 2
        error = capsys.readouterr().err
        assert "holds another run" in error
        assert words in error
    # With held-out losses, other episodes are trained on.
    assert run(*longer, "world_model.eval_every=2") == 2
    assert "eval_every was unset and is now True" in capsys.readouterr().err
    # A folder from before runs were recorded, one that has the model alone, and one that another
    # run never got far in.
    (tmp_path / "run/run.json").unlink()
    assert run(*longer, "seed=1") == 0
    for stage in ("autoencoder", "world_model", "inverse_dynamics"):
        shutil.rmtree(tmp_path / "run" / stage)
    assert run(*longer) == 2
    assert "seed was 1 and is now unset" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run/model")
    assert run(*longer) == 0
    assert recorded() == record
    (tmp_path / "run/run.json").write_text("[]")
    assert run(*longer) == 2
    assert "run.json can't be read" in capsys.readouterr().err


def test_nothing_is_replaced_but_what_the_run_itself_made(store, tmp_path, capsys):
    def run(out, *more):
        arguments = ["--recipe", f"{store}/recipe.yaml", "--data", f"{store}/data"]
        # Given twice, both count.
        changes = ["--set", *FEW[:1], "--set", *FEW[1:]]
        return main(["train", *arguments, *changes, "--out", str(out), *more])

    own = tmp_path / "project/model/network.py"
    own.parent.mkdir(parents=True)
    own.write_text("precious")
    assert run(tmp_path / "project") == 2
    assert "was made by no run" in capsys.readouterr().err
    assert own.read_text() == "precious"
    assert run(tmp_path / "run") == 0
    steps = (tmp_path / "run/autoencoder/metrics.jsonl").read_text().splitlines()
    assert json.loads(steps[-1])["step"] == 1
    weights = (tmp_path / "run/model/unet/diffusion_pytorch_model.safetensors").read_bytes()
    assert run(tmp_path / "run", "--init-from", f"{tmp_path}/run/model") == 2
    assert "is the model of --init-from" in capsys.readouterr().err
    assert (tmp_path / "run/model/unet/diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_a_run_that_another_one_meets_in_its_folder_goes_on_as_it_began(
    store, tmp_path, capsys, monkeypatch
):
    def run(*changes):
        arguments = ["--recipe", f"{store}/recipe.yaml", "--data", f"{store}/data"]
        return main(["train", *arguments, "--out", f"{tmp_path}/run", "--set", *FEW, *changes])

    train = Stages.train_autoencoder

    def met(stages, recipe):
        # Nothing is trained yet.
        before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        assert run("seed=1") == 2
        assert "another run is training in" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
        train(stages, recipe)

    with monkeypatch.context() as patch:
        patch.setattr(Stages, "train_autoencoder", met)
        assert run() == 0
    assert run() == 0


def test_data_of_another_environment_are_told(store, tmp_path, caplog):
    recipe = tmp_path / "other.yaml"
    text = (store / "recipe.yaml").read_text()
    recipe.write_text(text.replace("sfvgen/TabletopReturn-v0", "sfvgen/MetaWorld-v0"))
    assert text != recipe.read_text()
    arguments = ["--recipe", str(recipe), "--data", f"{store}/data", "--out", f"{tmp_path}/run"]
    assert main(["train", *arguments, "--set", *FEW]) == 0
    assert "the recipe's data are of sfvgen/MetaWorld-v0" in caplog.text
