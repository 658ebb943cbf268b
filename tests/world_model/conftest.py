import pytest

from sfvgen_planner.cli.main import main
from sfvgen_planner.world_model import tiny_world_model
from tests.training_recipes import RECIPE


@pytest.fixture(scope="session")
def model():
    return tiny_world_model()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder with the recipe and its data, in which a file's tests leave their runs."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "recipe.yaml").write_text(RECIPE.replace("STEPS", "6"))
    assert main(["collect", "--recipe", f"{folder}/recipe.yaml", "--out", f"{folder}/data"]) == 0
    return folder
