"""The files in configs/: each parses, trains what its name and its first lines say, and runs."""

from __future__ import annotations

import re
import shlex
from inspect import signature
from pathlib import Path

import pytest

from monoloss.cli import main
from monoloss.commands.train import train
from monoloss.sae.config import BatchTopKConfig, JumpReluConfig, TopKConfig, VanillaConfig
from monoloss.sae.model import SparseAutoencoder
from monoloss.training.config import SaeTraining
from monoloss.training.config_files import TrainingRecord, read_config
from support.saes import structured_store

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
ENCODERS = ("clip", "siglip2", "vit")
VARIANTS = {"batch_topk": BatchTopKConfig, "topk": TopKConfig, "jump_relu": JumpReluConfig, "vanilla": VanillaConfig}
WIDTHS = {"clip": 768, "siglip2": 1152, "vit": 1024}

# mono_weight of the authors' grid search, for the encoders in the order above
WEIGHTS = {
    ("imagenet", "batch_topk"): (3e-4, 1e-4, 4e-4),
    ("imagenet", "topk"): (0.09, 0.14, 0.09),
    ("imagenet", "jump_relu"): (5e-4, 1e-4, 7e-4),
    ("imagenet", "vanilla"): (1e-4, 3e-5, 9e-5),
    ("openimages", "batch_topk"): (5e-4, 2e-4, 7e-4),
    ("openimages", "topk"): (0.5, 0.3, 0.9),
    ("openimages", "jump_relu"): (5e-4, 1e-4, 5e-4),
    ("openimages", "vanilla"): (1e-4, 3e-5, 1e-4),
}
PAPER = {
    f"{data}/{encoder}-{variant}.yaml": weight
    for (data, variant), weights in WEIGHTS.items()
    for encoder, weight in zip(ENCODERS, weights, strict=True)
}
MEMORY = {f"memory/{name}": weight / 3 for name, weight in PAPER.items()}
FILES = [*PAPER, *MEMORY, "sweep.yaml"]


def header(name: str) -> list[str]:
    """The first comment block of a file, without its signs."""
    text = (CONFIGS / name).read_text(encoding="utf-8")
    return [line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines()]


def variant_of(name: str) -> str:
    return Path(name).stem.partition("-")[2] or "batch_topk"


def read(name: str) -> TrainingRecord:
    return read_config(CONFIGS / name)


def test_every_file_is_known():
    there = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    assert {name for name in there if not name.startswith("finetune/")} == set(FILES)  # the others: test_recipes
    table = (CONFIGS / "README.md").read_text(encoding="utf-8").partition("## Fine-tuning")[0]
    assert {*re.findall(r"\(([\w/.-]+\.yaml)\)", table)} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_the_paper_s_settings(name):
    training = read(name).training
    assert (training.batch_size, training.epochs, training.seed) == (2048, 50, 42)
    variant = variant_of(name)
    for settings in training.saes.values():
        sae = settings.sae
        assert isinstance(sae, VARIANTS[variant])
        assert sae.n_latents == 8192
        assert (settings.lr, settings.adam_eps, settings.seed) == (1e-4, 6.25e-10, 42)
        assert settings.clip_norm == (None if variant == "topk" else 1.0)
        assert settings.redraw_dead_every_steps == (10_000 if variant == "topk" else None)
        assert sae.inputs.unit_norm
        assert sae.inputs.standardise == (variant in ("topk", "jump_relu"))
        assert not sae.inputs.center
        if isinstance(sae, TopKConfig | BatchTopKConfig):
            assert (sae.k, sae.aux.k, sae.aux.weight) == (64, 64 if variant == "topk" else 512, 1 / 32)
        if isinstance(sae, TopKConfig):
            assert sae.tied
        if isinstance(sae, JumpReluConfig):
            assert (sae.l0_weight, sae.target_l0, sae.bandwidth, sae.initial_threshold) == (1e-3, None, 1e-3, 1.0)
        if isinstance(sae, VanillaConfig):
            assert sae.l1_weight == 1e-4


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_loss(name):
    saes = read(name).training.saes
    assert list(saes) == ["baseline", "mono"]
    assert saes["baseline"].mono_weight == 0
    mono = saes["mono"]
    assert mono.mono_weight == PAPER[name]
    assert (mono.mono_memory, mono.mono_center) == (0.0, False)
    assert mono.mono_embeddings == ("scaled" if variant_of(name) == "jump_relu" else "inputs")
    assert mono.sae == saes["baseline"].sae


@pytest.mark.parametrize("name", MEMORY)
def test_memory_and_centring(name):
    saes = read(name).training.saes
    assert list(saes) == ["baseline", "memory"]
    assert saes["baseline"].mono_weight == 0
    memory = saes["memory"]
    assert memory.mono_weight == pytest.approx(MEMORY[name], rel=0.03)  # two digits are written
    assert (memory.mono_memory, memory.mono_center, memory.mono_embeddings) == (0.9, True, "inputs")
    assert memory.sae == saes["baseline"].sae
    paper = read(name.removeprefix("memory/")).training.saes["baseline"]
    assert saes["baseline"] == paper


def test_the_sweep():
    saes = read("sweep.yaml").training.saes
    assert [settings.mono_weight for settings in saes.values()] == [0, 1e-4, 3e-4, 1e-3, 3e-3]
    assert all(f"mono-{settings.mono_weight}" == name for name, settings in saes.items())


@pytest.mark.parametrize("name", FILES)
def test_the_first_lines_hold_the_command(name):
    lines = header(name)
    words = shlex.split(next(line for line in lines if line.startswith("monoloss ")))
    assert words[:2] == ["monoloss", "train"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert options.pop("--config") == f"configs/{name}"
    assert set(options) == {"--store", "--validation", "--out"}
    assert {option.removeprefix("--") for option in options} <= set(signature(train).parameters)
    assert all(value.isupper() for value in options.values())  # places for the user's own
    if name != "sweep.yaml":
        assert any(f"width {WIDTHS[Path(name).stem.partition('-')[0]]}" in line for line in lines)


@pytest.mark.parametrize("name", FILES)
def test_the_first_lines_say_what_is_published(name):
    text = " ".join(header(name))
    figures = re.findall(r"\.\d{3} -> \.\d{3}", text)
    if name in MEMORY:
        assert "No published figure" in text
        assert name.removeprefix("memory/") in text
    elif name.startswith("openimages"):
        assert len(figures) == 2  # MonoScore and R2
        assert "not published" in text
    else:
        assert len(figures) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_file_trains_two_steps(name, tmp_path, monkeypatch, capsys):
    """By its own command, at a size that takes a moment."""
    monkeypatch.chdir(ROOT)
    structured_store(tmp_path / "train", 70)
    structured_store(tmp_path / "val", 20, seed=1)
    line = next(line for line in header(name) if line.startswith("monoloss "))
    for place, folder in (("TRAIN", "train"), ("VAL", "val"), ("RUN", "run")):
        line = line.replace(f" {place}", f" {tmp_path / folder}")
    more = ["--batch_size", "32", "--epochs", "1", "--progress", "false"]
    names = ["mono"] if name == "sweep.yaml" else list(read(name).training.saes)
    sizes = {"n_latents": "64"} | ({"k": "4"} if "topk" in variant_of(name) else {})
    for sae in names:
        for option, value in sizes.items():
            more += [f"--saes.{sae}.sae.{option}", value]
    assert main([*shlex.split(line)[1:], *more]) == 0, capsys.readouterr().err
    trained = read_config(tmp_path / "run" / "config.yaml").training
    for sae, settings in read(name).training.saes.items():
        assert (tmp_path / "run" / "evaluations" / sae / "evaluation.json").is_file()
        loaded = SparseAutoencoder.from_pretrained(tmp_path / "run" / "saes" / sae)
        assert loaded.config == trained.saes[sae].sae
        assert loaded.config.n_latents != settings.sae.n_latents
        assert loss_of(trained.saes[sae]) == loss_of(settings)


def loss_of(settings: SaeTraining) -> tuple[object, ...]:
    return (settings.mono_weight, settings.mono_memory, settings.mono_center, settings.mono_embeddings, settings.lr)
