"""Outputs of image models: how they are written, and the rows that they give, compared with timm's own words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from monoloss.data.encoders import load_encoder
from monoloss.data.encoders.outputs import EncoderOutput, check_layer, extract_rows, parse_output
from monoloss.errors import InputError
from support.encoders import FAMILIES, images_for

EXPECTED = {  # what each output is, said in timm's own words and without our code
    "clip": {
        None: lambda model, x: model(x),
        "embedding": lambda model, x: model(x),
        "class_token": lambda model, x: model.forward_features(x)[:, 0],
        "layer:head": lambda model, x: model(x),
    },
    "siglip": {
        None: lambda model, x: model(x),
        "pooled": lambda model, x: model.attn_pool(model.forward_features(x)),
        "layer:blocks.1": lambda model, x: block(model, x, 1).mean(dim=1),
    },
    "vit": {
        None: lambda model, x: model.forward_features(x)[:, 0],
        "pooled": lambda model, x: model.forward_features(x)[:, 0],
        "layer:blocks.0": lambda model, x: block(model, x, 0)[:, 1:].mean(dim=1),
        "layer:blocks.0:class": lambda model, x: block(model, x, 0)[:, 0],
        "layer:patch_embed": lambda model, x: model.patch_embed(x).mean(dim=1),  # no class token there yet
        "layer:head": lambda model, x: model(x),
    },
    "dinov2": {None: lambda model, x: model.forward_features(x)[:, 0]},
    "dinov2_registers": {
        None: lambda model, x: model.forward_features(x)[:, 0],
        "layer:blocks.1": lambda model, x: block(model, x, 1)[:, 5:].mean(dim=1),
    },
    "resnet": {
        None: lambda model, x: model.global_pool(model.forward_features(x)),
        "layer:layer2": lambda model, x: stages(model, x, 2).flatten(2).transpose(1, 2).mean(dim=1),
        "layer:fc": lambda model, x: model(x),
    },
    "swin": {
        None: lambda model, x: model.forward_features(x).mean(dim=(1, 2)),
        "layer:layers.0": lambda model, x: model.layers[0](model.patch_embed(x)).flatten(1, 2).mean(dim=1),
    },
}
EXPECTED["clip"]["pooled"] = EXPECTED["clip"]["class_token"]
PATCHES = {
    "clip": (None, (2, 2), lambda model, x: model.forward_features(x)[:, 1:]),
    "siglip": (None, (2, 2), lambda model, x: model.forward_features(x)),
    "vit": ("layer:blocks.0", (2, 2), lambda model, x: block(model, x, 0)[:, 1:]),
    "dinov2": (None, (2, 2), lambda model, x: model.forward_features(x)[:, 1:]),
    "dinov2_registers": (None, (2, 2), lambda model, x: model.forward_features(x)[:, 5:]),
    "resnet": ("layer:layer2", (8, 8), lambda model, x: stages(model, x, 2).flatten(2).transpose(1, 2)),
    "swin": (None, (7, 7), lambda model, x: model.forward_features(x).flatten(1, 2)),
}


def block(model, x, last):
    """The tokens after block `last`, by timm's own way of asking for them."""
    tokens = model.forward_intermediates(
        x, indices=[last], intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True, norm=False
    )
    patches, prefix = tokens[0] if isinstance(tokens[0], tuple) else (tokens[0], None)
    return patches if prefix is None else torch.cat([prefix, patches], dim=1)


def stages(model, x, n):
    x = model.maxpool(model.act1(model.bn1(model.conv1(x))))
    for stage in (model.layer1, model.layer2, model.layer3)[:n]:
        x = stage(x)
    return x


@pytest.mark.parametrize(("family", "output"), [(family, output) for family in EXPECTED for output in EXPECTED[family]])
def test_local_folder_gives_the_model_itself(folders, family, output):
    model, folder = folders[family]
    encoder = load_encoder(str(folder), output=output, image_size=None if family != "resnet" else 64)
    images = images_for(model)
    with torch.no_grad():
        expected = EXPECTED[family][output](model, images)
    rows = encoder(images)
    assert rows.dtype == torch.float32
    assert rows.shape == (3, encoder.width)
    assert not rows.requires_grad
    assert torch.equal(rows, expected)
    assert rows.std() > 0
    assert encoder.patch_grid is None
    assert encoder.name == FAMILIES[family][0]


@pytest.mark.parametrize("family", PATCHES)
def test_patches_of_local_folder(folders, family):
    model, folder = folders[family]
    output, grid, expected = PATCHES[family]
    encoder = load_encoder(str(folder), output=output, patches=True, image_size=None if family != "resnet" else 64)
    images = images_for(model)
    with torch.no_grad():
        assert torch.equal(encoder(images), expected(model, images))
    assert encoder.patch_grid == grid
    assert encoder(images[:0]).shape == (0, grid[0] * grid[1], encoder.width)


def test_pooling_is_recorded(folders):
    def pooling(family, output):
        return load_encoder(str(folders[family][1]), output=output, image_size=64).metadata["preprocessing"]["pooling"]

    assert pooling("clip", "layer:blocks.0") == pooling("resnet", "layer:layer1") == "mean of patches"
    assert pooling("clip", "class_token") == pooling("clip", "layer:blocks.0:class") == "class token"
    assert pooling("clip", "embedding") is pooling("resnet", "pooled") is pooling("resnet", "layer:fc") is None


def test_layer_ends_the_forward_pass(folders):
    model, folder = folders["vit"]
    encoder = load_encoder(str(folder), output="layer:blocks.0")
    called = []
    encoder.model.blocks[1].register_forward_hook(lambda *_: called.append(1))
    encoder(images_for(model))
    assert not called
    assert not encoder.model.blocks[0]._forward_hooks


@pytest.mark.door
def test_layer_that_is_never_called(folders):
    with pytest.raises(InputError, match="a layer that is never called"):
        load_encoder(str(folders["vit"][1]), output="layer:blocks.0.attn.attn_drop")  # attention is one fused step


@pytest.mark.parametrize(
    ("output", "patches", "expected"),
    [
        (None, False, None),
        (None, True, EncoderOutput("patches", patches=True)),
        ("embedding", False, EncoderOutput("embedding")),
        ("pooled", False, EncoderOutput("pooled")),
        ("class_token", False, EncoderOutput("class_token")),
        ("layer:blocks.3", False, EncoderOutput("layer", "blocks.3")),
        ("layer:blocks.3", True, EncoderOutput("layer", "blocks.3", patches=True)),
        ("layer:blocks.3:class", False, EncoderOutput("layer", "blocks.3", class_token=True)),
    ],
)
def test_an_output_as_it_is_written(output, patches, expected):
    parsed = parse_output(output, patches)
    assert parsed == expected
    assert parsed is None or output in {None, parsed.name}


@pytest.mark.door
@pytest.mark.parametrize(
    ("output", "patches", "message"),
    [
        (
            "layer:x:class",
            True,
            "output: got 'layer:x:class' with patches; expected 'layer:NAME', for all of its",
        ),
        ("pooled", True, "output: got 'pooled' with patches; expected 'layer:NAME', or None for the last feature map"),
        ("layer:", False, "output: got 'layer:'; expected 'embedding', 'pooled', 'class_token', 'layer:NAME' or"),
    ],
)
def test_outputs_that_cannot_be(output, patches, message):
    with pytest.raises(InputError) as error:
        parse_output(output, patches)
    assert str(error.value).startswith(message)


@pytest.mark.door
def test_a_layer_with_another_name():
    model = nn.Sequential()
    model.add_module("stem", nn.Identity())
    model.add_module("blocks", nn.Sequential(nn.Identity()))
    check_layer(model, EncoderOutput("layer", "blocks.0"))
    check_layer(model, EncoderOutput("pooled"))
    for name, near in (("block.0", "blocks.0"), ("zzz", "stem, blocks")):
        with pytest.raises(InputError, match=f"output: got 'layer:{name}', no layer .* such as {near}"):
            check_layer(model, EncoderOutput("layer", name))


class Fixed:
    """A model without weights that gives the same features for all images."""

    def __init__(self, features, **attributes):
        self.features = features
        self.__dict__.update(attributes)

    def forward_features(self, images):
        return self.features


POSITIONS = torch.arange(72.0).reshape(1, 2, 3, 12)  # for an image of 2 x 3 squares: height, width, channels
ROWS = POSITIONS.reshape(1, 6, 12)
WIDE = torch.zeros(1, 3, 20, 30)


@pytest.mark.parametrize(
    "model",
    [
        Fixed(POSITIONS),
        Fixed(POSITIONS.permute(0, 3, 1, 2)),
        Fixed(ROWS),
        Fixed(torch.cat([torch.full((1, 5, 12), 99.0), ROWS], dim=1), num_prefix_tokens=5),
        Fixed(torch.cat([torch.full((1, 1, 12), 99.0), ROWS], dim=1), cls_token=True),
        Fixed(ROWS, num_prefix_tokens=1),  # the class token is added later
        Fixed(ROWS, patch_embed=SimpleNamespace(grid_size=(2, 3))),
    ],
)
def test_patches_of_maps_and_tokens(model):
    extracted = extract_rows(model, WIDE, parse_output(None, patches=True))
    assert torch.equal(extracted.rows, ROWS)
    assert (extracted.grid, extracted.pooling) == ((2, 3), None)


@pytest.mark.door
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            torch.zeros(1, 7, 4),
            r"got 'patches', which gives shape \(1, 7, 4\); expected a vector, patch tokens or",
        ),
        (torch.zeros(1, 9, 2, 9), r"gives shape \(1, 9, 2, 9\)"),
        ({"x": ROWS}, "which gives a dict"),
    ],
)
def test_features_without_a_grid(features, message):
    with pytest.raises(InputError, match=message):
        extract_rows(Fixed(features), WIDE, parse_output(None, patches=True))


@pytest.mark.door
def test_a_class_token_is_asked_of_a_model_that_has_none():
    token = EncoderOutput("class_token")
    with pytest.raises(InputError, match="'class_token' of a model without a class token; expected 'pooled'"):
        extract_rows(Fixed(ROWS), WIDE, token)
    with pytest.raises(InputError, match=r"gives shape \(1, 6, 12\); expected a class token before patch tokens"):
        extract_rows(Fixed(ROWS, cls_token=True), WIDE, token)
