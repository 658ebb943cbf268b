"""A run's folder belongs to its recipe and its data."""

import shutil

from sfvgen_planner.cli.main import main
from tests.training_recipes import RECIPE


def test_another_run_is_not_gone_on_with(store, tmp_path, capsys):
    def run(*changes, data=store / "data"):
        arguments = ["--recipe", f"{store}/recipe.yaml", "--data", str(data), "--out"]
        return main(["train", *arguments, f"{tmp_path}/run", "--set", *changes])

    few = [f"{stage}.optimisation.steps=1" for stage in ("autoencoder", "inverse_dynamics")]
    few.append("world_model.optimisation.steps=1")
    optimisation = "world_model.optimisation"
    assert run(*few) == 0
    record = (tmp_path / "run/run.json").read_text()
    # What a run may be gone on with.
    longer = [*few, f"{optimisation}.steps=2", f"{optimisation}.learning_rate=0.0005", "name=other"]
    assert run(*longer, f"{optimisation}.checkpoint_every=1") == 0
    assert (tmp_path / "run/run.json").read_text() == record
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
    # A folder from before runs were recorded, and one that another run never got far in.
    (tmp_path / "run/run.json").unlink()
    assert run(*longer, "seed=1") == 0
    for stage in ("autoencoder", "world_model", "inverse_dynamics"):
        shutil.rmtree(tmp_path / "run" / stage)
    assert run(*longer) == 0
    assert (tmp_path / "run/run.json").read_text() == record
    (tmp_path / "run/run.json").write_text("[]")
    assert run(*longer) == 2
    assert "run.json can't be read" in capsys.readouterr().err
