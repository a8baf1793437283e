"""Presets, preprocessing, precision and arguments of image encoders."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from monoloss.data.encoders import PRESETS, load_encoder
from monoloss.data.encoders import weights as encoder_weights
from monoloss.data.encoders.encoders import _try, data_config
from monoloss.data.encoders.outputs import parse_output
from monoloss.data.encoders.weights import build_empty, request_model
from monoloss.errors import InputError
from monoloss.files.atomic import sha256
from support.encoders import images_for

# Outputs and widths that the encoders of the paper, and the others, are known to have; see also test_preset_models.
WIDTHS = {
    ("clip-vit-l14", "embedding"): 768,
    ("clip-vit-l14", "pooled"): 1024,
    ("siglip2-so400m", "pooled"): 1152,
    ("vit-l16", "pooled"): 1024,
    ("vit-l16", "class_token"): 1024,
    ("dinov2-l", "pooled"): 1024,
    ("resnet-50", "pooled"): 2048,
    ("clip-vit-b32", "embedding"): 512,
    ("clip-vit-b32", "class_token"): 768,
}
GRIDS = {"clip-vit-l14": 16, "siglip2-so400m": 27, "vit-l16": 14, "dinov2-l": 16, "resnet-50": 7, "clip-vit-b32": 7}


@cache
def empty_model(preset):
    chosen = PRESETS[preset]
    return build_empty(
        request_model(chosen.model, checkpoint=None, pretrained=True, image_size=chosen.image_size, seed=0)
    )


def shape_of(preset, output, patches=False):
    empty = empty_model(preset)
    assert all(value.device.type == "meta" for value in empty.parameters())
    size = data_config(empty, PRESETS[preset].image_size, None)["input_size"]
    return _try(empty, parse_output(output, patches), size)


@pytest.mark.parametrize(("preset", "output"), WIDTHS)
def test_width_of_preset(preset, output):
    extracted = shape_of(preset, output)
    assert tuple(extracted.rows.shape) == (1, WIDTHS[preset, output])
    assert extracted.grid is None
    if output == PRESETS[preset].output:
        assert PRESETS[preset].width == WIDTHS[preset, output]


@pytest.mark.parametrize("preset", PRESETS)
def test_patches_of_preset(preset):
    extracted = shape_of(preset, None, patches=True)
    side, width = GRIDS[preset], {"clip-vit-l14": 1024, "clip-vit-b32": 768}.get(preset, PRESETS[preset].width)
    assert tuple(extracted.rows.shape) == (1, side * side, width)
    assert extracted.grid == (side, side)


def test_preset_models():
    assert {name: preset.model for name, preset in PRESETS.items()} == {
        "clip-vit-l14": "vit_large_patch14_clip_224.datacompxl",
        "siglip2-so400m": "vit_so400m_patch14_siglip_378.v2_webli",
        "vit-l16": "vit_large_patch16_224.augreg_in21k_ft_in1k",
        "dinov2-l": "vit_large_patch14_dinov2.lvd142m",
        "resnet-50": "resnet50.tv2_in1k",
        "clip-vit-b32": "vit_base_patch32_clip_quickgelu_224.openai",
    }
    assert {preset.model for preset in PRESETS.values()} <= set(timm.list_pretrained())
    assert not set(PRESETS) & set(timm.list_models())  # a preset hides no model of timm


def test_preset_of_openai_computes_what_it_was_trained_with():
    blocks = {preset: empty_model(preset).blocks for preset in ("clip-vit-b32", "clip-vit-l14")}
    names = {preset: type(layers[0].mlp.act).__name__ for preset, layers in blocks.items()}
    assert names == {"clip-vit-b32": "QuickGELU", "clip-vit-l14": "GELU"}


def test_preset_resnet_is_tested_at_224():
    config = data_config(empty_model("resnet-50"), None, None)
    assert (config["input_size"], config["crop_pct"]) == ((3, 224, 224), 0.965)  # resized to 232; trained at 176


def test_metadata_is_plain_and_complete(folders):
    folder = folders["clip"][1]
    metadata = load_encoder(str(folder), dtype="bfloat16").metadata
    assert metadata == json.loads(json.dumps(metadata))
    assert set(metadata) == {"name", "weights", "preprocessing"}
    assert metadata["weights"] == {"file": "model.safetensors", "sha256": sha256(folder / "model.safetensors")}
    assert str(folder.parent) not in json.dumps(metadata)
    assert metadata["preprocessing"] == {
        "input_size": [3, 64, 64],
        "interpolation": "bicubic",
        "mean": pytest.approx([0.4815, 0.4578, 0.4082], abs=1e-4),
        "std": pytest.approx([0.2686, 0.2613, 0.2758], abs=1e-4),
        "crop_pct": pytest.approx(0.9),
        "crop_mode": "center",
        "output": "embedding",
        "pooling": None,
        "patches": False,
        "dtype": "bfloat16",
    }


def test_random_weights_follow_the_seed():
    first, same, other = (load_encoder("resnet10t", pretrained=False, image_size=32, seed=seed) for seed in (3, 3, 4))
    assert first.metadata["weights"] == {"random": 3}
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(first(images), same(images))
    assert not torch.equal(first(images), other(images))


def test_random_weights_leave_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_encoder("resnet10t", pretrained=False, image_size=32)
    assert torch.equal(torch.get_rng_state(), before)


def picture(width=300, height=200):
    columns = np.linspace(0, 255, width)[None, :, None] * np.array([1.0, 0.5, 0.0])
    rows = np.linspace(0, 255, height)[:, None, None] * np.array([0.0, 0.5, 1.0])
    return Image.fromarray((columns + rows).astype(np.uint8))


def test_transform_is_that_of_the_model_and_travels(folders):
    model, folder = folders["siglip"]
    encoder = load_encoder(str(folder))
    expected = timm.data.create_transform(**timm.data.resolve_model_data_config(model, {"img_size": 32}))(picture())
    for transform in (encoder.transform, pickle.loads(pickle.dumps(encoder.transform))):
        image = transform(picture())
        assert image.dtype == torch.float32
        assert torch.equal(image, expected)
    assert encoder(image[None]).shape == (1, encoder.width)


def test_crops(folders):
    folder = str(folders["siglip"][1])

    def red(crop):  # of a picture whose red grows from left to right, in [0, 1]
        encoder = load_encoder(folder, crop=crop)
        assert encoder.metadata["preprocessing"]["crop_mode"] == (crop or "center")
        image = encoder.transform(picture())
        assert image.shape == (3, 32, 32)
        row = image[0, 16] * 0.5 + 0.5
        return row[0].item(), row[-1].item()

    assert red(None) == red("center") == pytest.approx((0.5 - 0.3, 0.5 + 0.3), abs=0.02)  # .9 of 200 of 300 columns
    assert red("squash") == pytest.approx((0, 1), abs=0.03)  # the whole width
    assert red("border") == pytest.approx((0, 1), abs=0.03)
    assert load_encoder(folder, crop="squash").metadata["preprocessing"]["crop_pct"] == 1.0
    grey = load_encoder(folder, crop="border").transform(picture())[:, 0].abs().max()
    assert grey < 0.01  # the mean of the data above the picture


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.05), ("float16", 0.01)])
@pytest.mark.parametrize("family", ["clip", "resnet"])
def test_half_types(folders, family, dtype, error):
    model, folder = folders[family]
    size = None if family != "resnet" else 64
    rows = load_encoder(str(folder), image_size=size)(images_for(model))
    half = load_encoder(str(folder), image_size=size, dtype=dtype)(images_for(model))
    assert half.dtype == torch.float32
    assert 0 < (half - rows).norm() / rows.norm() < error


def test_mean_of_half_tokens_is_float32(folders):
    model, folder = folders["clip"]
    rows = load_encoder(str(folder), output="layer:blocks.1", dtype="bfloat16")(images_for(model))
    assert not torch.equal(rows, rows.bfloat16().float())  # it was not rounded again


def test_autocast_around_it_changes_nothing(folders):
    model, folder = folders["clip"]
    encoder = load_encoder(str(folder))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(images_for(model)), encoder(images_for(model)))
        inside = encoder(images_for(model))
    assert torch.equal(inside, encoder(images_for(model)))


def test_rows_can_be_used_for_training(folders):
    model, folder = folders["clip"]
    rows = load_encoder(str(folder))(images_for(model))
    weights = torch.ones(rows.shape[1], requires_grad=True)
    (rows @ weights).sum().backward()
    assert weights.grad is not None


def test_encoder_trains_nothing(folders):
    encoder = load_encoder(str(folders["resnet"][1]), image_size=64)
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    encoder(torch.randn(4, 3, 64, 64))
    assert not encoder.model.training
    assert not any(value.requires_grad for value in encoder.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.model.state_dict().items())


@pytest.mark.door
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "clip-vit-l15"}, "unknown to timm; expected .*clip-vit-l14"),
        ({"name": "resnet10tt"}, r"unknown to timm; expected .*resnet10t"),
        ({"name": "resnet50.tv3"}, r"no weights of resnet50; expected one of .*resnet50\.tv2_in1k"),
        ({"name": ""}, "unknown to timm"),
        ({"name": "hf-hub:"}, "encoder: got 'hf-hub:'"),
        ({"name": "timm/resnet10t"}, "hf-hub:USER/NAME"),
        ({"output": "logits"}, "output: got 'logits'; expected 'embedding', 'pooled'"),
        ({"output": "layer:"}, "output: got 'layer:'"),
        ({"output": "layer:layer9.0"}, r"no layer of this model; expected a layer such as .*layer\d\.0"),
        ({"output": "layer:zzz"}, r"a layer such as conv1, "),
        ({"output": "layer:layer1:class"}, "'layer:layer1:class' of a model without a class token"),
        ({"output": "embedding"}, "whose head is no projection; expected 'pooled'"),
        ({"output": "class_token"}, "a model without a class token"),
        ({"output": "pooled", "patches": True}, "'pooled' with patches"),
        ({"output": "layer:layer1:class", "patches": True}, "with patches"),
        ({"output": "layer:fc", "patches": True}, r"which gives shape \(1, 1000\)"),
        ({"crop": "middle"}, "crop: got 'middle'; expected one of None, 'center'"),
        ({"dtype": "int8"}, "dtype: got 'int8'"),
        ({"image_size": 0}, "image_size: got 0"),
        ({"image_size": "64"}, "image_size: got '64'"),
        ({"seed": -1}, "seed: got -1"),
        ({"device": "nowhere"}, "device: got 'nowhere'"),
        ({"checkpoint": "absent.pt", "pretrained": True}, "checkpoint: got 'absent.pt', no file"),
        ({"checkpoint": "absent.pt"}, "no checkpoint where pretrained is off"),
        ({"name": "swin_tiny_patch4_window7_224", "crop": "center", "image_size": 225.5}, "image_size: got 225.5"),
    ],
)
def test_refused(arguments, message, monkeypatch):
    monkeypatch.setattr(encoder_weights, "build_model", lambda *_, **__: pytest.fail("before any weights"))
    with pytest.raises(InputError, match=message) as error:
        load_encoder(**{"name": "resnet10t", "pretrained": False, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.door
@pytest.mark.parametrize(
    "images", [torch.zeros(3, 32, 32), torch.zeros(1, 3, 32, 33), torch.zeros(1, 3, 32, 32, dtype=torch.uint8), None]
)
def test_images_of_another_shape(images):
    encoder = load_encoder("resnet10t", pretrained=False, image_size=32)
    with pytest.raises(InputError, match=r"images: got .*; expected floating-point numbers, \(n, 3, 32, 32\)"):
        encoder(images)


@pytest.mark.door
def test_size_that_only_the_model_refuses():
    with pytest.raises(InputError, match=r"image_size: got 8 \(.*\); expected a size that the model takes"):
        load_encoder("vit_tiny_patch16_224", pretrained=False, image_size=8)


WITHOUT_TIMM = """
import sys
sys.modules["timm"] = None  # an import of it fails
from monoloss.data.encoders import PRESETS, load_encoder
print(bool(PRESETS), bool({"torchvision", "PIL", "huggingface_hub"} & set(sys.modules)))
try:
    load_encoder("resnet-50")
except ImportError as error:
    print(error)
"""


@pytest.mark.door
def test_without_timm():
    run = subprocess.run([sys.executable, "-c", WITHOUT_TIMM], capture_output=True, text=True, check=True)
    names, message = run.stdout.splitlines()
    assert names == "True False"  # the presets are there, and nothing heavy
    assert "timm" in message
