"""Runs as YAML files: what they say comes back, and what they cannot say is one clear sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from monoloss import InputError
from monoloss.sae.config import AuxLoss, InputScaling
from monoloss.training.config import SaeTraining, TrainingConfig
from monoloss.training.config_files import (
    TrainingRecord,
    config_text,
    read_config,
)
from support.saes import VARIANTS, some_config

TEXT = """
batch_size: 64
saes:
  base: &base
    sae: &size {variant: topk, n_latents: 64, k: 4}
    lr: 3e-4
  mono: {<<: *base, mono_weight: 1e-1}
  threshold.0:
    sae: {variant: jump_relu, n_latents: 64, inputs: {center: true}}
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "run.yaml").write_text(TEXT, encoding="utf-8")
    return tmp_path / "run.yaml"


def odd_settings(variant):
    """Every field away from its default."""
    sae = some_config(variant, 40, 3, inputs=InputScaling(unit_norm=True, center=True, standardise=False))
    if hasattr(sae, "aux"):
        sae = replace(sae, aux=AuxLoss(k=7, weight=1e-05, dead_after_samples=3))
    if variant == "jump_relu":
        sae = replace(sae, target_l0=3.5, l0_weight=1e-7)
    return SaeTraining(
        sae,
        mono_weight=3e-05,
        mono_memory=0.9,
        mono_center=True,
        lr=1e-5,
        warmup_steps=7,
        lr_schedule="cosine",
        adam_eps=1e-12,
        clip_norm=None,
        redraw_dead_every_steps=3,
        seed=2**53,
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_comes_back_equal(tmp_path, variant):
    training = TrainingConfig(
        {
            variant: odd_settings(variant),
            "no": replace(odd_settings(variant), clip_norm=0.5),
            "1.0": odd_settings("topk"),
        },
        batch_size=3,
        accumulate_batches=2,
        epochs=7,
        precision="bf16-mixed",
        log_every_steps=11,
        validate_every_steps=5,
        checkpoint_every_steps=6,
        checkpoint_every_minutes=None,
        keep_checkpoints=4,
        loggers=["wandb", "tensorboard"],
        seed=0,
    )
    config = TrainingRecord(training, "a store: é", "a1", None, None)
    (tmp_path / "run.yaml").write_text(config_text(config), encoding="utf-8")
    assert read_config(tmp_path / "run.yaml") == config
    assert type(read_config(tmp_path / "run.yaml").training.saes[variant].sae) is type(
        config.training.saes[variant].sae
    )
    assert config_text(read_config(tmp_path / "run.yaml")) == config_text(config)


def test_what_is_left_out_keeps_its_default_and_anchors_work(file):
    base, mono, threshold = read_config(file).training.saes.values()
    assert base == SaeTraining(some_config("topk", 64, 4), lr=3e-4)
    assert mono == replace(base, mono_weight=0.1)
    assert threshold.sae.inputs == InputScaling(center=True, standardise=True)  # JumpReLU's own default, but for center
    assert read_config(file).training == TrainingConfig(
        {"base": base, "mono": mono, "threshold.0": threshold}, batch_size=64
    )


def test_options_go_over_the_file_in_one_place_only(file):
    options = [
        ("epochs", "3"),
        ("saes.base.mono_weight", "3e-4"),
        ("saes.base.sae.k", "8"),
        ("saes.base.clip_norm", "null"),
        ("saes.threshold.0.sae.inputs.standardise", "false"),
        ("saes.mono.sae", "{variant: vanilla, n_latents: 5}"),
        ("loggers", "[wandb]"),
        ("store", "rows"),
    ]
    config = read_config(file, options)
    base, mono, threshold = config.training.saes.values()
    assert base == SaeTraining(some_config("topk", 64, 8), lr=3e-4, mono_weight=3e-4, clip_norm=None)
    assert mono == SaeTraining(some_config("vanilla", 5), lr=3e-4, mono_weight=0.1)
    assert threshold.sae.inputs == InputScaling(center=True, standardise=False)
    assert (config.training.epochs, config.training.loggers, config.store) == (3, ("wandb",), "rows")


def test_a_sweep_makes_an_sae_of_each_weight(file, tmp_path):
    config = read_config(file, [("sweep.base", "[0, 1e-4, 3e-05]"), ("sweep.threshold.0", "[2]")])
    saes = config.training.saes
    assert list(saes) == ["base-0.0", "base-0.0001", "base-3e-05", "mono", "threshold.0-2.0"]
    assert [settings.mono_weight for settings in saes.values()] == [0.0, 1e-4, 3e-5, 0.1, 2.0]
    assert saes["base-0.0001"] == replace(saes["base-3e-05"], mono_weight=1e-4)
    (tmp_path / "out.yaml").write_text(config_text(config), encoding="utf-8")
    assert "sweep" not in (tmp_path / "out.yaml").read_text(encoding="utf-8")
    assert read_config(tmp_path / "out.yaml") == config


def test_a_sweep_begins_with_a_baseline(tmp_path):
    """At weight 0 the options of MonoLoss, which would be refused there, are left out."""
    (tmp_path / "run.yaml").write_text(
        "{saes: {a: {sae: {variant: vanilla, n_latents: 9}, mono_weight: 1, mono_memory: 0.9, mono_center: true}}}"
    )
    base, mono = read_config(tmp_path / "run.yaml", [("sweep.a", "[0, 0.1]")]).training.saes.values()
    assert (base.mono_weight, base.mono_memory, base.mono_center) == (0.0, 0.0, False)
    assert (mono.mono_weight, mono.mono_memory, mono.mono_center) == (0.1, 0.9, True)


@pytest.mark.door
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch: 3", "epoch: got an unknown key; expected epochs, if that was meant, or one of store, "),
        ("epochs: 3", "saes: got nothing; expected keys and values"),
        ("saes: {}", "saes: got no SAE; expected at least one"),
        ("saes: {a: {}}", "saes.a.sae: got nothing; expected keys and values"),
        (
            "saes: {a: {sae: {n_latents: 5}}}",
            "saes.a.sae.variant: got nothing; expected one of topk, batch_topk, jump_relu, vanilla",
        ),
        (
            "saes: {a: {sae: {variant: 3}}}",
            "saes.a.sae.variant: got 3; expected one of topk, batch_topk, jump_relu, vanilla",
        ),
        ("saes: {a: {sae: {variant: topk, k: 3}}}", "saes.a.sae.n_latents: got nothing; expected an integer"),
        (
            "saes: {a: {sae: {variant: batch_topk, n_latents: 9, k: 3, tied: true}}}",
            "saes.a.sae.tied: got an option of topk; expected those of batch_topk: variant, n_latents, k, inputs, aux",
        ),
        (
            "saes: {a: {sae: {variant: vanilla, n_latents: 9, aux: {k: 3}}}}",
            "saes.a.sae.aux: got an option of topk, batch_topk; expected those of vanilla: variant, ",
        ),
        (
            "saes: {a: {sae: {variant: topk, n_latents: 9, k: 3, inputs: {centre: true}}}}",
            "saes.a.sae.inputs.centre: got an unknown key; expected center, if that was meant, or one of unit_norm, ",
        ),
        (
            "saes: {a: {sae: {variant: topk, n_latents: 9, k: 3, inputs: {center: 1}}}}",
            "saes.a.sae.inputs.center: got 1; expected true or false",
        ),
        (
            "saes: {a: {sae: {variant: topk, n_latents: 9, k: 3, aux: {k: 0}}}}",
            "saes.a.sae.aux.k: got 0; expected an integer at least 1",
        ),
        (
            "saes: {a: {sae: {variant: topk, n_latents: 9, k: 10}}}",
            "saes.a.sae.k: got 10; expected at most n_latents, 9",
        ),
        (
            "saes: {a: {sae: {variant: topk, n_latents: 9.0, k: 1}}}",
            "saes.a.sae.n_latents: got 9.0; expected an integer",
        ),
        (
            "saes: {a: {sae: {variant: topk, n_latents: true, k: 1}}}",
            "saes.a.sae.n_latents: got True; expected an integer",
        ),
        ("saes: {a: {sae: {variant: vanilla, n_latents: 9}, lr: fast}}", "saes.a.lr: got 'fast'; expected a number"),
        (
            "saes: {a: {sae: {variant: vanilla, n_latents: 9}, clip_norm: x}}",
            "saes.a.clip_norm: got 'x'; expected a number",
        ),
        (
            "saes: {a: {sae: {variant: vanilla, n_latents: 9}, lr: -1}}",
            "saes.a.lr: got -1.0; expected a number above 0.0",
        ),
        (
            "saes: {a: {sae: {variant: vanilla, n_latents: 9}, lr_schedule: cos}}",
            "saes.a.lr_schedule: got 'cos'; expected one of 'constant', 'linear', 'cosine'",
        ),
        (
            "saes: {a: {sae: {variant: vanilla, n_latents: 9}, mono_memory: 0.5}}",
            "saes.a.mono_memory: got 0.5; expected mono_weight above 0 to make use of it",
        ),
        ("saes: {a/b: {sae: {variant: vanilla, n_latents: 9}}}", "saes: got the name 'a/b'; expected names of letters"),
        ("saes: {1: {sae: {variant: vanilla, n_latents: 9}}}", "saes: the name 1: got a int; expected text"),
        (
            "saes: {a: {sae: {variant: vanilla, n_latents: 9}}}\nloggers: wandb",
            "loggers: got a str; expected a list of one of",
        ),
        (
            "saes: {a: {sae: {variant: vanilla, n_latents: 9}}}\nloggers: [x]",
            "loggers: got 'x'; expected one of 'tensorboard'",
        ),
        ("saes: {a: {sae: {variant: vanilla, n_latents: 9}}}\nstore: 3", "store: got 3; expected text"),
        (
            "saes: {a: {sae: {variant: vanilla, n_latents: 9}}}\nsweep: {b: [1]}",
            "sweep.b: got an unknown key; expected one of a",
        ),
        (
            "saes: {a: {sae: {variant: vanilla, n_latents: 9}}}\nsweep: {a: 1}",
            "sweep.a: got a int; expected a list of weights",
        ),
        (
            "saes: {a: {sae: {variant: vanilla, n_latents: 9}}}\nsweep: {a: []}",
            "sweep.a: got an empty list; expected at least",
        ),
        (
            "saes: {a: {sae: {variant: vanilla, n_latents: 9}}}\nsweep: {a: [-1]}",
            "sweep.a: got -1; expected a number at least",
        ),
        (
            "saes: {a: {sae: {variant: vanilla, n_latents: 9}}}\nsweep: {a: [1, 1.0]}",
            "sweep.a: got 1.0, which makes 'a-1.0' twice",
        ),
        (
            "saes: {a: 1}\nsaes: {a: 2}",
            "FILE: got text that is not YAML (the key 'saes' twice in line 1); expected",
        ),
        ("saes: [1", "FILE: got text that is not YAML (expected ',' or ']'"),
        (
            "saes: !!python/object/apply:os.getcwd []",
            "FILE: got text that is not YAML (could not determine a constr",
        ),
        ("a: &a [*a]", "FILE: got an anchor inside of itself; expected nested keys and values"),
        ("", "FILE: got a NoneType; expected a YAML mapping of keys and values"),
        ("a: 2020-99-99", "FILE: got text that is not YAML (unreadable text); expected valid YAML"),
        ("- 1", "FILE: got a list; expected a YAML mapping of keys and values"),
    ],
)
def test_error_texts(tmp_path, text, expected):
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_config(file)
    assert str(caught.value).startswith(expected.replace("FILE", str(file)))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.door
@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (
            ("saes.bsae.mono_weight", "1"),
            "saes.bsae: got an unknown key; expected base, if that was meant, or one of base, mono",
        ),
        (("saes.base.mono_wieght", "1"), "saes.base.mono_wieght: got an unknown key; expected mono_weight, if that"),
        (("saes.base.lr.x", "1"), "saes.base.lr: got a float; expected keys and values, because of --saes.base.lr.x"),
        (("saes.threshold", "1"), "saes.threshold: got an unknown key; expected threshold.0, if that was meant"),
        (("saes", "3"), "saes: got a int; expected a mapping from names to SAEs"),
        (("sweep", "3"), "sweep: got a int; expected a mapping from names of SAEs to lists of weights"),
        (("epochs", "[1"), "--epochs: got text that is not YAML (expected ',' or ']'"),
    ],
)
def test_error_texts_of_options(file, option, expected):
    with pytest.raises(InputError) as caught:
        read_config(file, [option])
    assert str(caught.value).startswith(expected)


@pytest.mark.door
def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for file, text in (
        (tmp_path / "none.yaml", "got No such file or directory; expected a readable YAML file"),
        (tmp_path, "got Is a directory; expected a readable YAML file"),
        (tmp_path / "bytes.yaml", "got a file that is not text; expected a readable YAML file"),
    ):
        with pytest.raises(InputError) as caught:
            read_config(file)
        assert str(caught.value) == f"{file}: {text}"
