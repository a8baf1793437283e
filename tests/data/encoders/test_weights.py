"""Local files of weights: what loads, and what is refused with which words."""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from monoloss.data.encoders import PRESETS, load_encoder
from monoloss.data.encoders import weights as encoder_weights
from monoloss.errors import InputError
from monoloss.files.atomic import sha256
from support.encoders import images_for, save_folder, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a ViT with a classifier of 7 classes and of a CLIP model, and the models in them."""
    parent = tmp_path_factory.mktemp("weights")
    models = {family: tiny_model(family) for family in ("vit", "clip")}
    return {family: (model, save_folder(model, parent / family)) for family, model in models.items()}


def other_weights(seed=9):
    return tiny_model("vit", seed)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_checkpoint_goes_before_the_folder(saved, tmp_path):
    model, file = other_weights(), tmp_path / "own.safetensors"
    save_file(state_of(model), file)
    encoder = load_encoder(str(saved["vit"][1]), checkpoint=str(file))
    assert encoder.metadata["weights"] == {"file": "own.safetensors", "sha256": sha256(file)}
    with torch.no_grad():
        assert torch.equal(encoder(images_for(model)), model.forward_features(images_for(model))[:, 0])


@pytest.mark.parametrize("kind", ["plain", "training", "ema", "data_parallel", "old_format"])
def test_files_of_torch_save(saved, tmp_path, kind):
    model, file = other_weights(), tmp_path / "last.pth"
    state, decoy = state_of(model), state_of(saved["vit"][0])
    content = {
        "plain": state,
        "old_format": state,
        "training": {"epoch": 3, "state_dict": state, "args": argparse.Namespace(lr=0.1)},
        "ema": {"state_dict": decoy, "state_dict_ema": state},
        "data_parallel": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    }[kind]
    torch.save(content, file, _use_new_zipfile_serialization=kind != "old_format")
    encoder = load_encoder(str(saved["vit"][1]), checkpoint=str(file))
    with torch.no_grad():
        assert torch.equal(encoder(images_for(model)), model.forward_features(images_for(model))[:, 0])


def test_names_of_open_clip_are_understood(saved, tmp_path):
    model, folder = saved["clip"][0], tmp_path / "folder"
    with torch.no_grad():
        model = copy.deepcopy(model)
        model.head.bias.zero_()  # there is none in such a file
    save_folder(model, folder)

    own = state_of(model)
    foreign = {
        "visual.class_embedding": own["cls_token"][0, 0],
        "visual.positional_embedding": own["pos_embed"][0],
        "visual.proj": own["head.weight"].T.contiguous(),
        "visual.conv1.weight": own["patch_embed.proj.weight"],
        "visual.ln_pre.weight": own["norm_pre.weight"],
        "visual.ln_pre.bias": own["norm_pre.bias"],
        "visual.ln_post.weight": own["norm.weight"],
        "visual.ln_post.bias": own["norm.bias"],
    }
    parts = {
        "norm1": "ln_1", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "attn.proj": "attn.out_proj"
    }  # fmt: skip
    for name, value in own.items():
        if not name.startswith("blocks."):
            continue
        _, i, rest = name.split(".", 2)
        rest = rest.replace("attn.qkv.weight", "attn.in_proj_weight").replace("attn.qkv.bias", "attn.in_proj_bias")
        for part, theirs in parts.items():
            rest = rest.replace(part, theirs)
        foreign[f"visual.transformer.resblocks.{i}.{rest}"] = value

    save_file(foreign, tmp_path / "open_clip_model.safetensors")
    for output in (None, "pooled"):  # the projection has another name in the file, whether it is used or not
        encoder = load_encoder(str(folder), checkpoint=str(tmp_path / "open_clip_model.safetensors"), output=output)
        expected = load_encoder(str(folder), output=output)(images_for(model))
        assert torch.equal(encoder(images_for(model)), expected)


@pytest.mark.parametrize("n_classes", [0, 3])
def test_head_that_is_not_used_may_differ(saved, tmp_path, n_classes):
    model, folder = saved["vit"]
    state = {name: value for name, value in state_of(model).items() if not name.startswith("head.")}
    if n_classes:
        state |= {"head.weight": torch.ones(n_classes, 32), "head.bias": torch.ones(n_classes)}
    save_file(state, tmp_path / "own.safetensors")
    encoder = load_encoder(str(folder), checkpoint=str(tmp_path / "own.safetensors"))
    assert torch.equal(encoder(images_for(model)), load_encoder(str(folder))(images_for(model)))


def test_safetensors_go_before_pickles(saved, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(saved["vit"][1], folder)
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert load_encoder(str(folder)).metadata["weights"]["file"] == "model.safetensors"


def test_folder_with_a_pickle_only(saved, tmp_path):
    model, folder = saved["vit"][0], tmp_path / "folder"
    folder.mkdir()
    shutil.copy(saved["vit"][1] / "config.json", folder)
    torch.save(state_of(model), folder / "pytorch_model.bin")
    encoder = load_encoder(f"local-dir:{folder}")
    assert encoder.metadata["weights"]["file"] == "pytorch_model.bin"
    assert torch.equal(encoder(images_for(model)), load_encoder(str(saved["vit"][1]))(images_for(model)))


class Attack:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.door
def test_code_in_a_pickle_is_not_executed(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": state_of(saved["vit"][0]), "extra": Attack()}, "own.pt")
    with pytest.raises(InputError, match=r"own\.pt: got a pickle with .*pathlib.* in it; nothing of it was executed"):
        load_encoder(str(saved["vit"][1]), checkpoint="own.pt")
    assert not Path("executed").exists()


@pytest.mark.door
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), r"do not fit vit_base_patch16_224 \(missing norm\.weight\)"),
        (lambda s: s.update(extra=torch.ones(1)), r"unexpected extra\)"),
        (lambda s: s.update({"norm.weight": torch.ones(5)}), r"of another shape norm\.weight \[5\] for \[32\]\)"),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith("blocks.1.")], r"missing blocks\.1\..* more"),
        (lambda s: s.pop("patch_embed.proj.weight"), r"do not fit"),
        (lambda s: s.clear() or s.update(w=torch.ones(2)), r"do not fit"),
        (lambda s: s.clear(), "a file without tensors"),
    ],
)
def test_weights_that_do_not_fit(saved, tmp_path, change, message):
    state = state_of(saved["vit"][0])
    change(state)
    file = tmp_path / "own.safetensors"
    save_file(state, file)
    with pytest.raises(InputError, match=rf"own\.safetensors: got .*{message}.*; expected") as error:
        load_encoder(str(saved["vit"][1]), checkpoint=str(file))
    assert "\n" not in str(error.value)


@pytest.mark.door
@pytest.mark.parametrize("head", ["other", "missing"])
@pytest.mark.parametrize("output", ["embedding", "layer:head"])
def test_head_that_is_used_must_fit(saved, tmp_path, head, output):
    state = state_of(saved["clip"][0])
    state["head.weight"] = state["head.weight"][:9].clone()
    if head == "missing":
        state.pop("head.weight")
    save_file(state, tmp_path / "own.safetensors")
    with pytest.raises(InputError, match=r"do not fit .*\((missing head\.weight|.*head\.weight \[9, 32\] for)"):
        load_encoder(str(saved["clip"][1]), output=output, checkpoint=str(tmp_path / "own.safetensors"))


@pytest.mark.door
@pytest.mark.parametrize("name", ["own.safetensors", "own.pt"])
def test_broken_files(saved, tmp_path, name):
    (tmp_path / name).write_bytes((saved["vit"][1] / "model.safetensors").read_bytes()[:999])
    with pytest.raises(InputError, match="an unreadable file"):
        load_encoder(str(saved["vit"][1]), checkpoint=str(tmp_path / name))


@pytest.mark.door
def test_folders_that_are_none(saved, tmp_path):
    with pytest.raises(InputError, match=r"no folder with a config\.json"):
        load_encoder(str(tmp_path))
    with pytest.raises(InputError, match=r"no local folder; expected a folder, or hf-hub:USER/NAME"):
        load_encoder(str(tmp_path / "absent"))
    shutil.copy(saved["vit"][1] / "config.json", tmp_path)
    with pytest.raises(InputError, match=r"without weights; expected one of model\.safetensors, "):
        load_encoder(str(tmp_path))
    assert load_encoder(str(tmp_path), pretrained=False).metadata["weights"] == {"random": 0}
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"], "model_type": "clip"}))
    for content in (
        json.dumps({"architectures": ["CLIPModel"]}),
        "{",
        '{"architecture": "vit_none", "pretrained_cfg": {}}',
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match=r"^encoder: got .*; expected ") as error:
            load_encoder(str(tmp_path), pretrained=False)
        assert "\n" not in str(error.value)


@pytest.mark.door
@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("resnet10t.c3_in1k", "timm/resnet10t.c3_in1k"),
        ("hf-hub:nobody/nothing", "nobody/nothing"),
    ],
)
def test_weights_that_are_not_here(name, looked_for, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        load_encoder(name)
    assert looked_for in str(error.value)
    assert "HF_HUB_OFFLINE is set" in str(error.value)
    assert "a local folder with config.json and model.safetensors" in str(error.value)
    assert "checkpoint" in str(error.value)
    assert "\n" not in str(error.value)


def test_place_on_the_hub_is_not_always_the_name():
    model = PRESETS["clip-vit-b32"].model
    assert encoder_weights._weights_place(model) == "timm/vit_base_patch32_clip_224.openai on the Hugging Face Hub"


@pytest.mark.door
@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ConnectionError("no route"), "no connection, or no such file"),
        (huggingface_hub.errors.HfHubHTTPError.__bases__[0]("late"), "no connection, or no such file"),
        (huggingface_hub.errors.LocalEntryNotFoundError("not cached"), "no connection, or no such file"),
        (huggingface_hub.errors.HFValidationError("name"), "which the Hub does not have"),
        (RuntimeError("No pretrained weights exist for resnet10t. Use"), "No pretrained weights exist"),
    ],
)
def test_failures_of_the_hub(monkeypatch, failure, message):
    monkeypatch.setattr(encoder_weights.constants, "HF_HUB_OFFLINE", False)
    create = encoder_weights.timm.create_model

    def fails(name, pretrained=False, **options):
        if pretrained:
            raise failure
        return create(name, **options)

    monkeypatch.setattr(encoder_weights.timm, "create_model", fails)
    with pytest.raises(InputError, match=message) as error:
        load_encoder("resnet10t.c3_in1k", image_size=32)
    assert "a local folder" in str(error.value)
    assert error.value.__cause__ is failure
