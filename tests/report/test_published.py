"""Which published values an evaluation may be compared with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from monoloss.report.published import MEASURES, PUBLISHED, VARIANTS, published_beside
from support.reports import PUBLISHED_SETTING, bare


@pytest.mark.parametrize(
    ("changed", "is_published"),
    [
        ({}, True),
        ({"encoder": {"name": "vit_large_patch14_clip_224", "weights": "openai"}}, False),
        ({"encoder": {"name": "vit_large_patch14_clip_224", "weights": {"file": "w.pt"}}}, False),
        ({"encoder": None}, False),
        ({"n_rows": 10_000}, False),
        ({"store": "tiny-imagenet-val", "n_rows": 10_000, "class_names": ["a"] * 200}, False),
        ({"store": "places-val"}, False),
        ({"centred": True}, False),
        ({"model": "TopKConfig(variant='topk', n_latents=8192, k=32, aux=AuxLoss(k=64))"}, False),
        ({"model": "JumpReLUConfig(variant='jump_relu', n_latents=8192)"}, True),
        ({"model": "activations in a.npy"}, False),
    ],
)
def test_every_part_of_the_setting_counts(changed, is_published):
    evaluation = bare(**(PUBLISHED_SETTING | changed))
    assert bool(published_beside(evaluation)) == is_published


def test_values_need_the_number_of_latents():
    evaluation = bare(**PUBLISHED_SETTING)
    assert published_beside(evaluation)["score_mean_zero_filled"] == (0.469, 0.550)
    fewer = replace(evaluation, summary={**evaluation.summary, "n_latents": 1024.0})
    assert published_beside(fewer) == {}


def test_values_are_those_of_variant_data_and_encoder():
    vit = {"name": "vit_large_patch16_224.orig", "weights": "timm/x.augreg_in21k_ft_in1k"}
    model = "VanillaConfig(variant='vanilla', n_latents=8192)"
    evaluation = bare(store="Open-Images V4", encoder=vit, model=model)
    assert published_beside(evaluation) == {"score_mean_zero_filled": (0.230, 0.322), "r2": (0.643, 0.597)}


def test_all_variants_have_values():
    assert len(PUBLISHED) == 18
    assert all(set(pairs) == set(VARIANTS) for pairs in PUBLISHED.values())
    assert {setting.measure for setting in PUBLISHED} == set(MEASURES)
