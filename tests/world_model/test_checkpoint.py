import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sfvgen_policies.inverse_dynamics import InverseDynamics

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.world_model import VideoWorldModel, load_world_model, tiny_world_model
from sfvgen_planner.world_model.heads import load_heads

PAST = np.zeros((1, 4, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    tiny_world_model().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def video(model):
    return model(PAST, "return the red cube", generator=torch.Generator().manual_seed(0)).latents


def test_round_trip_gives_the_same_video(saved, model):
    loaded = VideoWorldModel.from_pretrained(saved)
    for part in ("unet", "text_encoder", "vae"):
        weights, again = (getattr(one, part).state_dict() for one in (model, loaded))
        assert weights.keys() == again.keys()
        assert all(torch.equal(weights[name], again[name]) for name in weights)
    # Where weights lie in memory can turn the last bit.
    assert torch.allclose(video(loaded), video(model), atol=1e-5)
    assert loaded.config.num_future_frames == model.config.num_future_frames
    assert loaded.config.action_high == [1.0] * 4
    assert torch.allclose(video(load_world_model(saved)), video(model), atol=1e-5)


def test_a_saved_model_does_not_tell_where_it_was_loaded_from(saved, tmp_path):
    VideoWorldModel.from_pretrained(saved).save_pretrained(tmp_path / "again")
    texts = [path.read_text() for path in (tmp_path / "again").rglob("*.json")]
    assert not any(str(saved) in text for text in texts)


def test_only_json_and_safetensors_are_written(saved):
    kinds = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".txt"}


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "vae/config.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(SfvgenError, match=name):
        VideoWorldModel.from_pretrained(copy)


def test_truncated_weights_are_named(copy):
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SfvgenError, match=r"safetensors is cut short"):
        VideoWorldModel.from_pretrained(copy)


def test_foreign_weights_are_named(copy):
    other = tiny_world_model(seed=1)
    other.unet.save_pretrained(copy / "other")
    shutil.move(
        copy / "other/diffusion_pytorch_model.safetensors",
        copy / "unet/diffusion_pytorch_model.safetensors",
    )
    shutil.rmtree(copy / "other")
    with pytest.raises(SfvgenError, match=r"unet.*is not the file"):
        VideoWorldModel.from_pretrained(copy)


def test_foreign_weights_without_a_manifest_do_not_load(copy):
    (copy / "manifest.json").unlink()
    tiny_world_model(action_size=7).unet.save_pretrained(copy / "other")
    shutil.move(
        copy / "other/diffusion_pytorch_model.safetensors",
        copy / "unet/diffusion_pytorch_model.safetensors",
    )
    with pytest.raises(SfvgenError, match="can't be loaded"):
        VideoWorldModel.from_pretrained(copy)


def test_checkpoint_of_another_pipeline_is_refused(copy):
    index = json.loads((copy / "model_index.json").read_text())
    del index["unet"]
    index["_class_name"] = "FluxPipeline"
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SfvgenError, match="FluxPipeline"):
        VideoWorldModel.from_pretrained(copy)


def test_unreadable_json_is_named(copy):
    (copy / "model_index.json").write_text("{")
    with pytest.raises(SfvgenError, match=r"model_index.json is not valid JSON"):
        VideoWorldModel.from_pretrained(copy)


@pytest.mark.parametrize(
    "text", ["{}", '{"files": []}', '{"files": {"model_index.json": {"bytes": 3}}}']
)
def test_a_manifest_without_checksums_is_named(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(SfvgenError, match=r"manifest.json is no list of checksums"):
        VideoWorldModel.from_pretrained(copy)


def test_missing_shard_is_named(tmp_path):
    tiny_world_model().save_pretrained(tmp_path / "model", max_shard_size="200KB")
    shards = sorted((tmp_path / "model/unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    with pytest.raises(SfvgenError, match=shards[-1].name):
        VideoWorldModel.from_pretrained(tmp_path / "model")


def test_a_list_of_shards_that_is_none_is_named(copy):
    (copy / "manifest.json").unlink()
    (copy / "unet/diffusion_pytorch_model.safetensors.index.json").write_text('{"metadata": {}}')
    with pytest.raises(SfvgenError, match=r"index.json is no list of shards"):
        VideoWorldModel.from_pretrained(copy)


@pytest.mark.parametrize("sizes", [("200KB", "10GB"), ("10GB", "200KB")])
def test_a_model_is_saved_over_one_with_other_shards(model, tmp_path, sizes):
    for size in sizes:
        model.save_pretrained(tmp_path / "model", max_shard_size=size)
        assert torch.allclose(
            video(VideoWorldModel.from_pretrained(tmp_path / "model")), video(model), atol=1e-5
        )


def test_files_of_others_in_the_folder_are_left_alone(copy):
    others = {
        copy / "log.json": '{"step": 1}\n{"step": 2}\n',
        copy / "mine/config.json": '{"_name_or_path": "here"}',
    }
    (copy / "mine").mkdir()
    for file, text in others.items():
        file.write_text(text)
    tiny_world_model(seed=1).save_pretrained(copy)
    assert {file: file.read_text() for file in others} == others
    (copy / "log.json").write_text("[]")
    VideoWorldModel.from_pretrained(copy)


def test_a_tokenizer_without_words_is_told(copy):
    (copy / "manifest.json").unlink()
    (copy / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(SfvgenError, match="holds no tokenizer"):
        VideoWorldModel.from_pretrained(copy)


def test_missing_weights_are_not_made_up(copy):
    (copy / "manifest.json").unlink()
    InverseDynamics(64, [-1.0], [1.0], (8, 8), 8).save_pretrained(copy / "inverse_dynamics")
    for part, load in (
        ("text_encoder/model", VideoWorldModel.from_pretrained),
        ("inverse_dynamics/diffusion_pytorch_model", load_heads),
    ):
        file = copy / f"{part}.safetensors"
        weights = load_file(file)
        del weights[min(weights)]
        save_file(weights, file, {"format": "pt"})
        with pytest.raises(SfvgenError, match=r"lacks 1 of the weights"):
            load(copy)


@pytest.mark.parametrize("name", ["vae", "scheduler"])
def test_a_part_can_not_be_left_out(saved, name):
    with pytest.raises(SfvgenError, match=f"needs its {name}"):
        VideoWorldModel.from_pretrained(saved, **{name: None})


def test_sizes_that_make_no_sense_are_told(copy):
    (copy / "manifest.json").unlink()
    file = copy / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attention_head_dim": 0}))
    with pytest.raises(SfvgenError, match="can't be loaded"):
        VideoWorldModel.from_pretrained(copy)
    with pytest.raises(SfvgenError, match="num_past_frames must be a whole number"):
        VideoWorldModel(**tiny_world_model().components, num_past_frames=4.5)


def test_no_folder_and_no_shipped_model(tmp_path):
    with pytest.raises(SfvgenError, match="no checkpoint folder"):
        VideoWorldModel.from_pretrained(tmp_path / "nothing")
    with pytest.raises(SfvgenError, match="no model called"):
        load_world_model("no-such-model")


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_precision_has_diffusers_names(saved, name):
    model = VideoWorldModel.from_pretrained(saved, **{name: torch.bfloat16})
    assert model.unet.dtype == torch.bfloat16
    with pytest.raises(SfvgenError, match=r"torch\.bfloat16"):
        VideoWorldModel.from_pretrained(saved, **{name: "bfloat16"})


def test_weights_under_other_names_are_told(copy):
    """As those of a model that was saved with an adapter in it."""
    (copy / "manifest.json").unlink()
    file = copy / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.base_layer.weight"] = weights.pop("conv_in.weight")
    save_file(weights, file)
    with pytest.raises(SfvgenError, match="unet lacks weights"):
        VideoWorldModel.from_pretrained(copy)


def test_a_model_is_not_saved_onto_a_file(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SfvgenError, match="cannot write"):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
