"""Fine-tuned models as folders: the same function comes back; whatever is wrong with a folder is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from monoloss.errors import InputError
from monoloss.files.model_folder import Provenance
from monoloss.finetune.model.folder import is_finetuned, load_finetuned, save_finetuned
from monoloss.finetune.model.lora import SplitQkv
from monoloss.finetune.model.model import build_model
from support import bounds
from support.encoders import FAMILIES, images_for, save_folder, tiny_model
from support.finetune_models import CLASSES, LORA, pictures, small_model, stirred


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return save_finetuned(stirred(small_model("test_vit", top_k=9)), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def saved(whole, tmp_path) -> Path:
    """A copy that a test may damage."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def metadata(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def change(folder: Path, path: str, value: object) -> None:
    content = metadata(folder)
    place = content
    *parents, last = path.split(".")
    for key in parents:
        place = place[key]
    place.pop(last, None)
    if value is not Ellipsis:
        place[last] = value
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_to_the_bit(family, tmp_path):
    original = tiny_model(family)
    model = stirred(build_model(str(save_folder(original, tmp_path / "timm")), CLASSES, seed=2)).eval()
    again = load_finetuned(save_finetuned(model, tmp_path / "model"))
    images = images_for(original)
    with torch.no_grad():
        for one, other in zip(model.forward_both(images), again.forward_both(images), strict=True):
            assert torch.equal(one, other)
    assert not any(part.training for part in again.modules())
    assert (again.class_names, again.preprocessing, again.recipe) == (CLASSES, model.preprocessing, model.recipe)


def test_top_k_and_origin_travel_with_the_model(tmp_path):
    model = small_model(top_k=3)
    model.provenance = Provenance({"name": "clip"}, "abc", {"mono_weight": 0.03})
    again = load_finetuned(save_finetuned(model, tmp_path / "model"))
    assert again.top_k == 3
    assert again.provenance == model.provenance


def test_low_rank_updates_are_merged_in_the_file_and_stay_in_the_model(tmp_path):
    model = stirred(small_model("test_vit", lora=LORA)).eval()
    again = load_finetuned(save_finetuned(model, tmp_path / "model"))
    assert load_file(tmp_path / "model" / "model.safetensors").keys() == small_model("test_vit").state_dict().keys()
    with torch.no_grad():
        expected = model(pictures())
        torch.testing.assert_close(again(pictures()), expected, rtol=0, atol=bounds.of_network(again, expected))
    assert isinstance(model.backbone.blocks[0].attn.qkv, SplitQkv)
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_saving_again_replaces_and_leaves_two_files(saved):
    other = small_model()
    save_finetuned(other, saved)
    assert {file.name for file in saved.iterdir()} == {"model.safetensors", "config.json"}
    assert load_finetuned(saved).width == other.width
    assert not list(saved.parent.glob(".*.tmp"))


def test_a_model_in_half_precision_is_stored_exactly(tmp_path):
    model = small_model().bfloat16()
    again = load_finetuned(save_finetuned(model, tmp_path / "model"))
    assert torch.equal(again.new_layer.weight, model.new_layer.weight.float())


def test_what_is_a_fine_tuned_model(saved, tmp_path):
    assert is_finetuned(saved)
    change(saved, "format_version", 99)
    assert is_finetuned(saved)
    assert not is_finetuned(tmp_path)
    (saved / "config.json").write_text("{")
    assert not is_finetuned(saved)


@pytest.mark.door
@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("format_version", 2, "config.json: got format_version 2; expected format_version 1"),
        ("kind", "sae", "config.json: got a file of kind 'sae'; expected the config.json of a fine-tuned model"),
        ("width", ..., "config.json: width: got nothing"),
        ("width", 10**12, "config.json: width: got 1000000000000; expected an integer at least 1 and below"),
        ("width", 63, "model.safetensors: got .* of shape"),
        ("top_k", 65, "config.json: model.top_k: got 65; expected at most the layer's width, 64"),
        ("top_k", "3", "config.json: top_k: got a str"),
        ("class_names", ["a", "b"], r"model.safetensors: got classifier.weight of shape \(3, 64\)"),
        ("class_names", ["a", "b", "b"], "config.json: class_names: got a name twice"),
        ("extra", 1, "config.json: extra: got an unknown key"),
        ("backbone.architecture", "no_such_net", r"config.json: backbone: got 'no_such_net' \(Unknown model"),
        ("backbone.args.no_such_option", 1, r"config.json: backbone: got 'test_vit' \(.*no_such_option"),
        ("backbone.args.checkpoint_path", "x.pt", "config.json: backbone.args.checkpoint_path: got a value"),
        ("backbone.args.img_size", [64, 64], "model.safetensors: got backbone.pos_embed of shape"),
        ("preprocessing.mean", [0.5], r"config.json: preprocessing: mean: got \[0.5\]; expected three numbers"),
        ("preprocessing.std", [0.5, 0.0, 1.0], "preprocessing: std: got 0.0; expected a number above 0"),
        ("preprocessing.input_size", [1, 32, 32], "preprocessing: input_size: got"),
        ("preprocessing.interpolation", "magic", "preprocessing: interpolation: got 'magic'"),
        ("preprocessing.crop_mode", ..., "preprocessing: crop_mode: got nothing"),
        ("training", 3, "config.json: training: got a int"),
    ],
)
def test_a_wrong_config(saved, path, value, text):
    change(saved, path, value)
    with pytest.raises(InputError, match=text):
        load_finetuned(saved)


@pytest.mark.door
def test_wrong_tensors(saved):
    file = saved / "model.safetensors"
    tensors = load_file(file)
    for change_of, text in (
        ({"classifier.bias": None}, "model.safetensors: got no tensor 'classifier.bias'"),
        ({"stranger": torch.zeros(1)}, "model.safetensors: got a tensor 'stranger'"),
        ({"classifier.bias": torch.zeros(3).double()}, "classifier.bias of dtype torch.float64"),
        ({"classifier.bias": torch.full((3,), torch.nan)}, "classifier.bias with NaN or infinity"),
    ):
        damaged = {name: value for name, value in {**tensors, **change_of}.items() if value is not None}
        save_file(damaged, file)
        with pytest.raises(InputError, match=text):
            load_finetuned(saved)
    file.write_bytes(b"torn")
    with pytest.raises(InputError, match=r"model.safetensors: got an unreadable file"):
        load_finetuned(saved)
    file.unlink()
    with pytest.raises(InputError, match=r"model.safetensors: got no such file"):
        load_finetuned(saved)


@pytest.mark.door
def test_other_folders(tmp_path):
    with pytest.raises(InputError, match="nowhere: got no such folder; expected the folder of a fine-tuned model"):
        load_finetuned(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="got a folder with other files"):
        save_finetuned(small_model(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.door
def test_what_has_diverged_is_not_saved(tmp_path):
    model = small_model()
    with torch.no_grad():
        model.new_layer.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"new_layer.weight: got NaN or infinity"):
        save_finetuned(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
