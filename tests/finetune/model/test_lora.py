"""LoRA on query and value: nothing changes at the start, the right slices learn, merging gives timm's layout back."""

from __future__ import annotations

import sys

import pytest
import timm
import torch
from torch import nn

from monoloss.errors import InputError
from monoloss.finetune.model.lora import SplitQkv, add_lora, merge_lora
from monoloss.finetune.model.model import merged
from support import bounds
from support.encoders import FAMILIES, images_for, tiny_model
from support.finetune_models import LORA, pictures, small_model, stirred, trainable

WITH_ATTENTION = [family for family in FAMILIES if family != "resnet"]


@pytest.mark.parametrize("width", [32, 192, 768])
@pytest.mark.parametrize("bias", [True, False])
def test_three_layers_give_what_one_gave(width, bias):
    torch.manual_seed(0)
    fused, rows = nn.Linear(width, 3 * width, bias=bias), torch.randn(2, 50, width)
    split = SplitQkv(fused)
    bound = float(bounds.of_product(rows, fused.weight.T).max())
    torch.testing.assert_close(split(rows), fused(rows), rtol=0, atol=bound)
    assert (fused(rows) - fused(rows).roll(width, -1)).abs().max() > 100 * bound  # as with the slices in another order
    assert torch.equal(split.fused().weight, fused.weight)
    assert (split.fused().bias is None) == (not bias)
    assert not bias or torch.equal(split.fused().bias, fused.bias)


@pytest.mark.parametrize("family", WITH_ATTENTION)
def test_nothing_changes_at_the_start_and_the_old_layout_comes_back(family):
    model = tiny_model(family).eval()
    images, before = images_for(model), {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        original = model(images)
        bound = bounds.of_network(model, original)
        add_lora(model, **vars(LORA))
        torch.testing.assert_close(model.eval()(images), original, rtol=0, atol=bound)
        for part in (part for part in model.modules() if isinstance(part, SplitQkv)):
            part.query, part.value = part.value, part.query
        assert (model(images) - original).abs().max() > 100 * bound  # another order of the slices would be seen
        for part in (part for part in model.modules() if isinstance(part, SplitQkv)):
            part.query, part.value = part.value, part.query
        merge_lora(model)
        assert torch.equal(model(images), original)  # the same layers with the same weights
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_only_query_and_value_learn_and_the_update_is_alpha_over_rank():
    model = small_model("test_vit", lora=LORA)
    names = trainable(model)
    inside = {name for name in names if name.startswith("backbone.")}
    assert names - inside == {"new_layer.weight", "new_layer.bias", "classifier.weight", "classifier.bias"}
    parts = {tuple(name.split(".")[-4:]) for name in inside}
    assert parts == {(p, f, "default", "weight") for p in ("query", "value") for f in ("lora_A", "lora_B")}
    blocks = {name.split(".")[2] for name in inside}
    assert len(blocks) == len(model.backbone.blocks)

    stirred(model)
    qkv = model.backbone.blocks[0].attn.qkv
    width = qkv.key.weight.shape[0]
    expected = torch.zeros(3 * width, width)
    for part, layer in ((0, qkv.query), (2, qkv.value)):
        update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (LORA.alpha / LORA.rank)
        expected[part * width : (part + 1) * width] = update.detach()
    base = torch.cat([qkv.query.base_layer.weight, qkv.key.weight, qkv.value.base_layer.weight])
    torch.testing.assert_close(merged(model).backbone.blocks[0].attn.qkv.weight - base, expected)


def test_a_step_of_sgd_moves_the_updates_alone():
    model = small_model("test_vit", lora=LORA)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model(pictures()).square().sum().backward()
    torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1).step()
    moved = {name for name, value in model.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_B" in name for name in moved)  # A has no gradient while B is zero


def test_merged_is_a_copy_that_computes_the_same():
    model = stirred(small_model("test_vit", lora=LORA)).eval()
    plain = merged(model)
    assert plain.backbone.state_dict().keys() == small_model("test_vit").backbone.state_dict().keys()
    assert isinstance(model.backbone.blocks[0].attn.qkv, SplitQkv)
    with torch.no_grad():
        expected = model(pictures())
        bound = bounds.of_network(plain, expected)
        torch.testing.assert_close(plain(pictures()), expected, rtol=0, atol=bound)
        without = stirred(small_model("test_vit")).eval()(pictures())
        assert (plain(pictures()) - without).abs().max() > 1000 * bound
    assert trainable(plain) == {name for name, _ in plain.named_parameters()}


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("vit_small_patch16_rope_224", {}, "qkv.value"),
        ("vit_small_patch16_dinov3", {}, "qkv.value"),
        ("eva02_tiny_patch14_224", {"qkv_fused": False}, "v_proj"),
    ],
)
def test_attention_of_other_kinds(name, options, part):
    sizes = {"img_size": 28, "patch_size": 14, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
    model = timm.create_model(name, **sizes, **options).eval()
    images, names = torch.randn(2, 3, 28, 28), list(model.state_dict())
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "gamma" in parameter_name:  # what scales a block's output starts close to 0
                parameter.fill_(1.0)
        original = model(images)
        add_lora(model, **vars(LORA))
        assert f"blocks.0.attn.{part}.lora_B.default.weight" in trainable(model)
        assert len(trainable(model)) == 2 * 2 * 2
        torch.testing.assert_close(model.eval()(images), original, rtol=0, atol=bounds.of_network(model, original))
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.requires_grad)
        updated = model(images)
        merge_lora(model)
        bound = bounds.of_network(model, updated)
        assert (updated - original).abs().max() > 100 * bound
        torch.testing.assert_close(model(images), updated, rtol=0, atol=bound)
    assert list(model.state_dict()) == names


def test_first_factors_follow_from_the_seed():
    one, same, other = (small_model("test_vit", seed=seed, lora=LORA) for seed in (1, 1, 2))
    name = "backbone.blocks.0.attn.qkv.query.lora_A.default.weight"
    assert torch.equal(one.get_parameter(name), same.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


def test_merging_without_lora_changes_nothing():
    model = small_model()
    before = [*model.backbone.modules()]
    merge_lora(model.backbone)
    assert [*model.backbone.modules()] == before


@pytest.mark.door
def test_a_network_without_attention():
    with pytest.raises(InputError, match=r"model.lora: got low-rank updates for ResNet, without attention"):
        small_model("test_resnet", lora=LORA)


@pytest.mark.door
def test_attention_that_is_written_otherwise():
    with pytest.raises(InputError, match=r"model.lora: got attention of the kind .* at .*; expected a backbone with"):
        small_model("test_vit_relpos", lora=LORA)


@pytest.mark.door
def test_attention_that_multiplies_by_itself():
    sizes = {"img_size": 28, "depth": 1, "embed_dim": 32, "num_heads": 2}
    with pytest.raises(InputError, match=r"attention of the kind EvaAttention at blocks.0.attn"):
        add_lora(timm.create_model("eva02_base_patch14_224", **sizes, qkv_fused=True))


@pytest.mark.door
def test_a_missing_peft_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"peft: got no such package; expected pip install 'monoloss\[finetune\]'"):
        add_lora(small_model("test_vit").backbone)
