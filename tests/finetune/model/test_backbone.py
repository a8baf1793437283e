"""Backbones of timm: loaded without their classifier, measured, and built again from a recipe."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from monoloss.errors import InputError
from monoloss.finetune.model.backbone import load_backbone, pooled_width, rebuild_backbone
from monoloss.finetune.model.model import build_model
from support.finetune_models import CLASSES, SIZE, pictures, small_model, stirred


def test_weights_come_from_a_file(tmp_path):
    source = timm.create_model("test_resnet", num_classes=11)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    model = build_model("test_resnet", CLASSES, checkpoint=str(tmp_path / "weights.pt"), image_size=SIZE)
    state = model.backbone.state_dict()
    assert state.keys() == {name for name in source.state_dict() if not name.startswith("fc.")}
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in state.items())


def test_a_preset_is_known():
    with torch.device("meta"):
        recipe = load_backbone("resnet-50", pretrained=False, image_size=64).recipe
    assert recipe["architecture"] == "resnet50"
    assert recipe["pretrained_cfg"]["tag"] == "tv2_in1k"


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_efficientnet"])
def test_a_recipe_gives_the_same_model(backbone):
    model = stirred(small_model(backbone)).eval()
    again = rebuild_backbone(model.recipe).eval()
    again.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        assert torch.equal(again(pictures()), model.backbone(pictures()))


def test_pooled_width_leaves_the_mode_alone():
    model = small_model().train()
    assert pooled_width(model.backbone, SIZE) == model.width
    assert model.backbone.training
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    pooled_width(model.backbone, 64)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.named_buffers())


@pytest.mark.door
def test_a_size_that_a_vit_does_not_take():
    with pytest.raises(
        InputError, match=r"augmentation.train_crop: got 48 .*; expected a size that the backbone takes"
    ):
        pooled_width(timm.create_model("vit_tiny_patch16_224", depth=1), 48, "augmentation.train_crop")


@pytest.mark.door
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"architecture": "no_such_net"}, r"^backbone: got 'no_such_net' \(Unknown model.*; expected a model of this"),
        ({"args": {"checkpoint_path": "x.pt"}}, r"^backbone\.args\.checkpoint_path: got a value; expected no such key"),
    ],
)
def test_a_recipe_that_timm_cannot_follow(changes, text):
    recipe = load_backbone("test_resnet", pretrained=False, image_size=SIZE).recipe
    with pytest.raises(InputError, match=text):
        rebuild_backbone({**recipe, **changes})


@pytest.mark.door
def test_a_backbone_gives_one_vector_an_image():
    with pytest.raises(InputError, match=r"model\.backbone: got a model whose pooled output is shape \(1, 2, 30, 30\)"):
        pooled_width(nn.Conv2d(3, 2, 3), SIZE)
