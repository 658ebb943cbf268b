import shutil

from huggingface_hub import ModelCard

from sfvgen_planner.world_model import load_world_model, tiny_world_model
from sfvgen_planner.world_model.model_card import write_model_card


def test_the_card_tells_what_the_folder_holds(tiny_checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    model = tiny_world_model()
    model.register_to_config(env_id="Reach-v0", data_steps=12345)
    write_model_card(folder, model.config)
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict()["library_name"] == "diffusers"
    assert card.data.pipeline_tag == "image-to-video"
    assert "# Video world model of Reach-v0\n" in card.text
    assert "8 frames of 64x64 from 4 past ones" in card.text
    assert "4 action numbers" in card.text
    assert "12,345 steps of data" in card.text
    rows = dict(line.split(" | ") for line in card.text.splitlines() if line.startswith("| `"))
    assert rows.keys() == {"| `inverse_dynamics`", "| `text_encoder`", "| `unet`", "| `vae`"}
    for name in ("text_encoder", "unet", "vae"):
        count = sum(parameter.numel() for parameter in getattr(model, name).parameters())
        assert rows[f"| `{name}`"] == f"{count:,} |"
    # The card is not in the manifest: it may be edited.
    load_world_model(folder)


def test_what_is_not_known_is_left_out(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    write_model_card(tmp_path / "model", tiny_world_model().config)
    text = ModelCard.load(tmp_path / "model/README.md").text
    assert "# Video world model\n" in text
    assert "steps of data" not in text
