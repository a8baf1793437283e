"""``monoloss info``, called in-process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monoloss import (
    FeatureStore,
    SaeTraining,
    SparseAutoencoder,
    TopKConfig,
    TrainingConfig,
    evaluate,
    train_saes,
)
from monoloss.cli import main
from monoloss.data.store.format import SkippedFile
from monoloss.data.store.summary import bytes_on_disk, class_counts, mean_cosine, skip_reasons
from monoloss.data.store.writer import FeatureStoreWriter
from monoloss.sae.config import JumpReluConfig
from support.stores import rows_of


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def info(capsys: pytest.CaptureFixture[str], path: Path, *argv: str) -> dict[str, str]:
    """What is printed, as a mapping of its first column to its second."""
    assert main(["info", str(path), *argv]) == 0
    streams = capsys.readouterr()
    assert not streams.err
    metadata: dict[str, str] = {}
    for line in streams.out.splitlines():
        name, _, entry = line.strip().partition("  ")
        if name:
            metadata[name] = entry.strip()
    return metadata


def refused(capsys: pytest.CaptureFixture[str], path: Path, *argv: str) -> str:
    assert main(["info", str(path), *argv]) == 2
    streams = capsys.readouterr()
    assert not streams.out
    assert len(streams.err.splitlines()) == 1
    return streams.err.removeprefix("monoloss: ").strip()


def test_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = torch.tensor([0, 2, 2, 2, 0, 4, 2, 5, 6, 1])
    names = ["ant", "[bold]bee", "cat", "\udc80", "elk", "fox", "gnu"]
    encoder = {"name": "clip", "weights": "openai", "preprocessing": {"size": 224, "mean": None}}
    options: dict[str, Any] = {"class_names": names, "encoder": encoder, "image_root": "/data/[x]"}
    store = FeatureStore.create(tmp_path / "s", rows_of(10), labels, rows_per_shard=4, dtype="float16", **options)
    metadata = info(capsys, tmp_path / "s")
    assert metadata["rows"] == "10 in 3 shards of 4"
    assert metadata["width"] == "5"
    assert metadata["stored as"] == "float16"
    assert metadata["labels"].startswith("7 classes, 0 to 4 rows each: cat 4, ant 2, [bold]bee 1, elk 1,")
    assert metadata["encoder"] == "clip, weights openai, preprocessing.size 224"
    assert metadata["image root"] == "/data/[x]"
    assert metadata["fingerprint"] == store.fingerprint
    norms = store.embeddings().double().norm(dim=1)
    assert metadata["norms"] == f"{norms.min():.4g} to {norms.max():.4g}"
    assert metadata["on disk"].endswith("KiB")
    assert not metadata.keys() & {"skipped files", "thumbnails", "verified"}
    assert info(capsys, tmp_path / "s", "--verify")["verified"] == "every file has its sha256"


def test_a_bare_store_of_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = torch.arange(1, 9, dtype=torch.uint8).reshape(2, 4)
    thumbnails = torch.zeros(2, 3, 5, 3, dtype=torch.uint8)
    FeatureStore.create(tmp_path / "s", rows, scale=0.25, thumbnails=thumbnails)
    metadata = info(capsys, tmp_path / "s")
    assert metadata["stored as"] == "uint8, value = 0.25 * byte"
    assert metadata["labels"] == "none"
    assert metadata["thumbnails"] == "3 x 5 x 3"
    assert metadata["rows"] == "2 in 1 shard of 65536"
    FeatureStore.create(tmp_path / "one", torch.eye(1, 4))
    metadata = info(capsys, tmp_path / "one")
    assert "mean cosine" not in metadata
    assert metadata["norms"] == "1 to 1, unit rows"


def test_several_labels_and_skipped_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = FeatureStoreWriter(tmp_path / "s", rows_per_shard=4)
    labels = torch.tensor([[True, False, True], [True, False, False], [False, False, False]])
    reasons = ["no image", "too small", "no image", "unreadable", "a", "b", "c"]
    skipped = [SkippedFile(i, f"{i}.jpg", reason) for i, reason in enumerate(reasons)]
    writer.write_shard(0, rows_of(3), list("abc"), labels, skipped=skipped[:3])
    writer.write_shard(1, rows_of(3), list("def"), labels, skipped=skipped[3:])
    writer.finish()
    store = FeatureStore(tmp_path / "s")
    assert class_counts(store).tolist() == [4, 0, 2]
    assert skip_reasons(store)[:2] == [("no image", 2), ("too small", 1)]
    metadata = info(capsys, tmp_path / "s")
    assert metadata["labels"] == "3 classes, several a row, 0 to 4 rows each: 0 4, 2 2, 1 0"
    assert metadata["skipped files"] == "7: 2 no image; 1 too small; 1 unreadable; 1 a; 1 b; ..."


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_mean_cosine_is_that_of_all_pairs(tmp_path: Path, dtype: str) -> None:
    options: dict[str, Any] = {"scale": 0.05} if dtype == "uint8" else {}
    store = FeatureStore.create(tmp_path / "s", rows_of(30).abs() + 0.1, rows_per_shard=7, dtype=dtype, **options)
    unit = store.embeddings().double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(30) for j in range(30) if i != j]
    assert mean_cosine(store) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert bytes_on_disk(store) == sum(file.stat().st_size for file in (tmp_path / "s").iterdir())


@pytest.mark.door
def test_broken_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("torn", "changed", "json", "unfinished", "gone"):
        FeatureStore.create(tmp_path / name, rows_of(10), rows_per_shard=4)
    shard = tmp_path / "torn" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    assert refused(capsys, tmp_path / "torn").startswith(f"{shard}: got ")
    shard = tmp_path / "changed" / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes(content)
    info(capsys, tmp_path / "changed")
    assert "changed contents in shard-00001.safetensors" in refused(capsys, tmp_path / "changed", "--verify")
    (tmp_path / "json" / "manifest.json").write_text("{", encoding="ascii")
    assert "manifest.json: got a file that is not JSON" in refused(capsys, tmp_path / "json")
    (tmp_path / "unfinished" / "manifest.json").unlink()
    assert "got a folder without manifest.json; expected a store that" in refused(capsys, tmp_path / "unfinished")
    (tmp_path / "gone" / "shard-00002.jsonl").unlink()
    assert "shard-00002.jsonl: got no such file" in refused(capsys, tmp_path / "gone")


@pytest.mark.door
def test_what_is_none_of_the_four(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x", encoding="ascii")
    assert refused(capsys, tmp_path / "absent").startswith(f"{tmp_path / 'absent'}: got no such folder; expected the")
    assert refused(capsys, tmp_path / "file").startswith(f"{tmp_path / 'file'}: got a file; expected the folder of a")
    assert refused(capsys, tmp_path).startswith(f"{tmp_path}: got a folder with none of manifest.json, evaluation.json")


def test_unusable_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["a", "b"], ["a", "--verify", "--verfy"]):
        assert main(["info", *argv]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_a_sae(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sae = SparseAutoencoder(5, TopKConfig("topk", n_latents=12, k=3))
    sae.save_pretrained(tmp_path / "sae")
    metadata = info(capsys, tmp_path / "sae")
    assert (metadata["kind"], metadata["width"], metadata["latents"], metadata["k"]) == ("topk", "5", "12", "3")
    assert metadata["parameters"] == str(sum(parameter.numel() for parameter in sae.parameters()))
    assert metadata["inputs.standardise"] == "True"
    SparseAutoencoder(5, JumpReluConfig("jump_relu", n_latents=12)).save_pretrained(tmp_path / "jump")
    assert info(capsys, tmp_path / "jump")["kind"] == "jump_relu"


@pytest.mark.door
def test_a_broken_sae(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sae = SparseAutoencoder(5, TopKConfig("topk", n_latents=12, k=3))
    sae.save_pretrained(tmp_path / "sae")
    assert refused(capsys, tmp_path / "sae", "--verify").startswith(f"verify: got {tmp_path / 'sae'}, which is no feat")
    (tmp_path / "sae" / "config.json").unlink()
    assert "config.json" in refused(capsys, tmp_path / "sae")


def test_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore.create(tmp_path / "store", rows_of(20), torch.arange(20) % 3)
    sae = SparseAutoencoder(5, TopKConfig("topk", n_latents=12, k=3))
    evaluation = evaluate(store, {"[mine]": sae})["[mine]"]
    evaluation.save(tmp_path / "evaluation")
    metadata = info(capsys, tmp_path / "evaluation")
    assert "evaluation of [mine]" in metadata
    assert metadata["score_mean"] == f"{evaluation.summary['score_mean']:.4g}"
    assert metadata["n_latents"] == "12"
    (tmp_path / "evaluation" / "latents.safetensors").write_bytes(b"torn")
    assert "latents.safetensors" in refused(capsys, tmp_path / "evaluation")


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore.create(tmp_path / "store", rows_of(40))
    held_out = FeatureStore.create(tmp_path / "held out", rows_of(20, seed=1))
    saes = {
        "base": SaeTraining(TopKConfig("topk", n_latents=12, k=3)),
        "mono": SaeTraining(TopKConfig("topk", n_latents=12, k=3), mono_weight=3e-4),
    }
    config = TrainingConfig(saes, batch_size=10, epochs=1)
    train_saes(store, config, tmp_path / "run", validation=held_out, progress=False)
    capsys.readouterr()
    metadata = info(capsys, tmp_path / "run")
    assert metadata["state"] == "finished"
    assert metadata["checkpoints"] == "after step 4"
    assert metadata["store"] == str(tmp_path / "store")
    assert metadata["store_fingerprint"] == store.fingerprint
    assert metadata["batch_size"] == "10"
    assert metadata["SAE base"] == "topk, n_latents 12, k 3, lr 0.0001"
    assert metadata["SAE mono"] == "topk, n_latents 12, k 3, mono_weight 0.0003, mono_embeddings inputs, lr 0.0001"
    assert "evaluations" in metadata
    assert {"base", "mono"} <= {name.split(" ")[0] for name in metadata}
    assert info(capsys, tmp_path / "run" / "saes" / "mono")["training.mono_weight"] == "0.0003"
    (tmp_path / "run" / "saes").rename(tmp_path / "saes")
    assert info(capsys, tmp_path / "run")["state"] == "not finished"
    (tmp_path / "run" / "config.yaml").write_text("sae: {", encoding="ascii")
    assert "config.yaml" in refused(capsys, tmp_path / "run")
