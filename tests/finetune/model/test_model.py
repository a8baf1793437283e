"""The model that is fine-tuned: what its parts are, for every family of backbones; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models import list_models

from monoloss.errors import InputError
from monoloss.finetune.config import ModelConfig
from monoloss.finetune.model.model import build_model
from support import bounds
from support.encoders import FAMILIES, images_for, save_folder, tiny_model
from support.finetune_models import CLASSES, SIZE, model_of, pictures, small_config, small_model

SMALL = [name for name in list_models("test_*") if name not in {"test_coatnet", "test_maxvit", "test_vit_relpos"}]


@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_activations_are_what_the_head_of_the_original_is_given(family, tmp_path):
    original = tiny_model(family)
    model = build_model(str(save_folder(original, tmp_path / "model")), CLASSES).eval()
    images = images_for(original)
    with torch.no_grad():
        pooled = original.forward_head(original.forward_features(images), pre_logits=True)
        assert torch.equal(model.backbone(images), pooled)
        by_hand = (pooled @ model.new_layer.weight.T + model.new_layer.bias).clamp(min=0)
        bound = float(bounds.of_product(pooled, model.new_layer.weight.T).max())
        torch.testing.assert_close(model.layer(images), by_hand, rtol=0, atol=bound)
        logits, activations = model.forward_both(images)
        torch.testing.assert_close(activations, by_hand, rtol=0, atol=bound)
        by_hand, bound = (
            activations @ model.classifier.weight.T,
            float(bounds.of_product(activations, model.classifier.weight.T).max()),
        )
        torch.testing.assert_close(logits, by_hand + model.classifier.bias, rtol=0, atol=bound)
        assert torch.equal(model(images), logits)
    assert model.width == pooled.shape[1] == model.new_layer.in_features == model.new_layer.out_features
    assert logits.shape == (len(images), len(CLASSES))


@pytest.mark.parametrize("name", SMALL)
def test_other_networks_of_timm(name):
    model = small_model(name)
    loss = model(pictures(2)).square().sum()
    loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused  # DistributedDataParallel would refuse them
    assert model.layer(pictures(2)).shape == (2, model.width)


def test_top_k_keeps_the_largest_of_each_row():
    whole, few = small_model().eval(), small_model(top_k=5).eval()
    with torch.no_grad():
        dense, kept = whole.layer(pictures()), few.layer(pictures())
    largest = dense.topk(5, dim=1)
    assert torch.equal(kept, torch.zeros_like(dense).scatter(1, largest.indices, largest.values))
    assert (kept > 0).sum(1).tolist() == [5] * 4


def test_gradient_of_top_k_is_that_of_what_is_kept():
    model = small_model(top_k=5).eval()
    kept = model.layer(pictures())
    kept.sum().backward()
    assert torch.equal(model.new_layer.bias.grad, (kept > 0).sum(0).float())  # sums of ones


def test_top_k_of_the_full_width_does_nothing():
    width = small_model().width
    assert torch.equal(small_model().eval()(pictures()), small_model(top_k=width).eval()(pictures()))


def test_new_weights_follow_from_the_seed_and_leave_other_draws_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = small_model("test_vit", seed=1, lora=None)
    assert torch.equal(torch.rand(3), expected)
    again, other = small_model("test_vit", seed=1), small_model("test_vit", seed=2)
    for name, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(one.new_layer.weight, other.new_layer.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


def test_image_size_becomes_that_of_the_backbone():
    model = small_model("test_vit")
    assert model.preprocessing["input_size"] == [3, SIZE, SIZE]
    assert model.input_size == SIZE
    assert model.recipe["args"]["img_size"] == [SIZE, SIZE]


@pytest.mark.door
@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            ModelConfig("test_resnett", pretrained=False),
            "model.backbone: got 'test_resnett', unknown to timm.*test_resnet",
        ),
        (small_config(top_k=97), "model.top_k: got 97; expected at most the layer's width, 96"),
        (ModelConfig("test_resnet", checkpoint="no.pt"), "model.checkpoint: got 'no.pt', no file"),
        (ModelConfig("test_vit", pretrained=False, image_size=9), "model.image_size: got 9"),
    ],
)
def test_what_cannot_be_built(config, text):
    with pytest.raises(InputError, match=text):
        model_of(config)


@pytest.mark.door
@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["cat"], "class_names: got 1 names; expected at least two"),
        (["cat", "cat"], "class_names: got a name twice"),
        ("cat", "class_names: got a str"),
        (["cat", 2], "class_names: got a int"),
    ],
)
def test_wrong_class_names(names, text):
    with pytest.raises(InputError, match=text):
        build_model("test_resnet", names, pretrained=False, image_size=SIZE)


@pytest.mark.door
def test_a_missing_timm_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm.models", None)
    with pytest.raises(ImportError, match=r"timm: got no such package; expected pip install 'monoloss\[finetune\]'"):
        small_model()


def test_folder_of_timm_with_its_own_sizes(tmp_path: Path):
    original = tiny_model("clip")
    model = build_model(str(save_folder(original, tmp_path / "clip")), CLASSES, image_size=96)
    assert model.input_size == 96
    assert model.layer(torch.zeros(1, 3, 96, 96)).shape == (1, 32)
