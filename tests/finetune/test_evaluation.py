"""Fine-tuned models evaluated on the images of a store: joined, streamed, the same as activations in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import reference
from monoloss.cli import main
from monoloss.commands.sources import evaluation_folders, find_sources
from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.run import evaluate
from monoloss.evaluation.stored_activations import StoredActivations
from monoloss.files.dataclasses import to_plain
from monoloss.files.model_folder import Provenance
from monoloss.finetune.config import AugmentationConfig, DataConfig, FineTuneConfig
from monoloss.finetune.evaluation import ImageActivations, images_of_run
from monoloss.finetune.images.join import images_of_rows
from monoloss.finetune.images.labelled import LabelledImages
from monoloss.finetune.images.transforms import evaluation_transform
from monoloss.finetune.model.folder import load_finetuned, save_finetuned
from monoloss.finetune.model.model import FineTuneModel
from monoloss.finetune.run import fine_tune
from monoloss.finetune.run_folder import validation_measures
from monoloss.report.discovery import find_evaluations
from monoloss.report.runs import report_runs
from support import bounds
from support.finetune_models import LORA, model_of, small_config, stirred
from support.finetune_runs import a_run as a_run_config
from support.finetune_runs import data_in
from support.image_folders import CLASSES, labelled, picture_folder, store_of
from support.reports import cell_of, page_data

N = 12


@pytest.fixture
def images(tmp_path: Path) -> LabelledImages:
    return labelled(picture_folder(tmp_path / "images"))


@pytest.fixture
def store(tmp_path: Path, images: LabelledImages) -> FeatureStore:
    """The rows are in the reverse order of the images."""
    return store_of(tmp_path / "store", images)


def a_model(**options: Any) -> FineTuneModel:
    return stirred(model_of(small_config(**options), CLASSES)).eval()


def by_hand(model: FineTuneModel, images: LabelledImages) -> tuple[Tensor, Tensor]:
    """Logits and activations, in the order of the images."""
    transform = evaluation_transform(model.preprocessing)
    pictures = torch.stack([transform(images.read(i)) for i in range(len(images))])
    with torch.no_grad():
        return model.forward_both(pictures)


def assert_near(model: FineTuneModel, got: Tensor, expected: Tensor) -> None:
    """The same activations from batches of other sizes: 0.009 apart at most, where rows are 0.27 apart at least."""
    torch.testing.assert_close(got, expected, rtol=0, atol=bounds.of_network(model, expected) if len(expected) else 0)


@pytest.mark.parametrize(("batch_size", "image_batch_size"), [(2048, 64), (5, 3), (1, 5), (4, 4)])
def test_activations_follow_the_rows_of_the_store(images, store, batch_size, image_batch_size):
    model = a_model()
    logits, activations = by_hand(model, images)
    rows = ImageActivations(model, images, store, batch_size=image_batch_size)
    parts = [rows.rows(i, min(i + batch_size, N)) for i in range(0, N, batch_size)]
    assert_near(model, torch.cat(parts), activations.flip(0))
    right = logits.argmax(1) == images.labels
    assert rows.measures() == {"top1": pytest.approx(float(right.float().mean())), "top5": 1.0}
    assert len(rows) == N


def test_rows_in_any_order(images, store):
    model = a_model()
    expected = by_hand(model, images).activations.flip(0)
    rows = ImageActivations(model, images, store, batch_size=5)
    for start, stop in ((7, 9), (9, 12), (3, 3), (0, 12), (0, 1), (1, 2)):
        assert_near(model, rows.rows(start, stop), expected[start:stop])


def test_worker_processes_change_nothing(images, store):
    model = a_model()
    one, other = (ImageActivations(model, images, store, batch_size=4, workers=workers) for workers in (0, 2))
    assert torch.equal(one.rows(0, N), other.rows(0, N))  # the model sees the same batches, in this process


@pytest.mark.parametrize("latents_per_pass", [None, 50])
def test_an_evaluation_is_that_of_the_activations_in_a_file(images, store, tmp_path, latents_per_pass):
    model = a_model(top_k=20)
    rows = ImageActivations(model, images, store, batch_size=5)
    activations = torch.cat([rows.rows(start, min(start + 7, N)) for start in range(0, N, 7)])  # as evaluated below
    assert_near(model, activations, by_hand(model, images).activations.flip(0))
    np.save(tmp_path / "a.npy", activations.numpy())
    model.train()
    models = {
        "mine": ImageActivations(model, images, store, batch_size=5),
        "file": StoredActivations(tmp_path / "a.npy"),
    }
    found = evaluate(store, models, batch_size=7, latents_per_pass=latents_per_pass)
    mine, file = found["mine"], found["file"]
    assert model.training  # as it was
    found_alike = {name: value for name, value in mine.summary.items() if name in file.summary}
    assert found_alike == bounds.close_summary(file.summary, bounds.of_score(7))
    assert mine.summary.keys() - file.summary.keys() == {"top1", "top5"}
    scores = reference.mono_score_pairwise(store.rows(torch.arange(N)), activations)
    np.testing.assert_allclose(mine.latents["score"].numpy(), scores, rtol=0, atol=bounds.of_score(7))
    assert torch.equal(mine.examples.rows, file.examples.rows)
    assert mine.metadata["model"].startswith("the layer of a fine-tuned test_resnet on imagefolder:")


def test_images_of_other_classes_have_no_accuracy(images, store):
    model = stirred(model_of(small_config(), ["ant", "bee", "dog"])).eval()
    rows = ImageActivations(model, images, store)
    rows.rows(0, N)
    assert rows.measures() == {}


def test_classes_are_matched_by_name(images, store):
    model = a_model()
    model.class_names = ("cat", "ant", "bee")
    rows = ImageActivations(model, images, store)
    rows.rows(0, N)
    expected = torch.tensor([1, 2, 0])[images.labels]
    assert rows.measures()["top1"] == pytest.approx(
        float((by_hand(model, images).logits.argmax(1) == expected).float().mean())
    )


def test_rows_of_a_part_of_the_images(images, tmp_path):
    ids = [images.ids[i] for i in (7, 2)]
    part = FeatureStore.create(tmp_path / "part", torch.eye(2), ids=[f"elsewhere/{name[4:]}" for name in ids])
    assert images_of_rows(images, part, "name").tolist() == [7, 2]
    model = a_model()
    rows = ImageActivations(model, images, part, join_on="name")
    assert_near(model, rows.rows(0, 2), by_hand(model, images).activations[[7, 2]])


@pytest.mark.door
def test_what_does_not_belong_together(images, store, tmp_path):
    model = a_model()
    other = FeatureStore.create(tmp_path / "other", torch.eye(2), ids=["ant/ant0.png", "ant/ant9.png"])
    with pytest.raises(
        InputError, match=r"images: got imagefolder:.*, without an image for 1 of 2 rows \(ant/ant9.png\)"
    ):
        ImageActivations(model, images, other)
    moved = FeatureStore.create(tmp_path / "moved", torch.eye(2), ids=["x/ant0.png", "x/ant1.png"])
    with pytest.raises(InputError, match=r"without an image for 2 of 2 rows .*; expected join_on 'name'"):
        ImageActivations(model, images, moved)
    wrong = store_of(tmp_path / "wrong", images, labels=images.labels)
    with pytest.raises(InputError, match=r"store: got .*where 8 of 12 images have another label"):
        ImageActivations(model, images, wrong)
    with pytest.raises(
        InputError, match=r"models\['a'\]: got 12 rows in the layer of .*; expected one for each row of the store, 2"
    ):
        evaluate(other, {"a": ImageActivations(model, images, store)})
    for options, text in (({"batch_size": 0}, "batch_size: got 0"), ({"workers": -1}, "workers: got -1")):
        with pytest.raises(InputError, match=text):
            ImageActivations(model, images, store, **options)
    with pytest.raises(InputError, match="model: got a Linear"):
        ImageActivations(torch.nn.Linear(1, 1), images, store)


def a_run(folder: Path, data: DataConfig | None, **options: Any) -> FineTuneModel:
    """What `monoloss finetune` leaves of a run, with a model that trained on some data."""
    model = a_model()
    if data is not None:
        model.provenance = Provenance(training=to_plain(FineTuneConfig(small_config(), data, **options)))
    save_finetuned(model, folder / "model")
    (folder / "config.yaml").touch()
    return model


def test_sources_of_runs_and_folders(tmp_path):
    a_run(tmp_path / "run", None)
    save_finetuned(a_model(), tmp_path / "alone")
    texts = [str(tmp_path / "run"), f"best={tmp_path / 'run' / 'model'}", str(tmp_path / "alone")]
    run, named, alone = find_sources([], finetuned=texts)
    assert [source.name for source in (run, named, alone)] == ["run", "best", "alone"]
    assert {source.kind for source in (run, named, alone)} == {"finetuned"}
    assert evaluation_folders([run, alone]) == {
        "run": tmp_path / "run" / "evaluations" / "run",
        "alone": Path("evaluations") / "alone",
    }
    assert evaluation_folders([named], tmp_path / "out") == {"best": tmp_path / "out" / "best"}
    a_run(tmp_path / "other" / "run", None)
    twins = find_sources([], finetuned=[str(tmp_path / "run"), str(tmp_path / "other" / "run")])
    assert [source.name for source in twins] == [f"{tmp_path.name}-run", "other-run"]
    assert evaluation_folders(twins)["other-run"] == tmp_path / "other" / "run" / "evaluations" / "run"


def test_the_command_evaluates_a_run_on_its_held_out_images(tmp_path, images, store, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = f"imagefolder:{tmp_path / 'images'}"
    model = a_run(tmp_path / "run", DataConfig("imagefolder:elsewhere", validation=place))
    np.save(tmp_path / "codes.npy", torch.rand(N, 3).numpy())
    command = ["evaluate", "--progress", "false", "--store", "store", "--finetuned", "run", "--image_batch_size", "5"]
    assert main([*command, "--activations", "codes.npy"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "fine-tuned" in out
    assert "run is right in " in out
    written = Evaluation.load(tmp_path / "run" / "evaluations" / "run")
    expected = evaluate(store, {"run": ImageActivations(model, images, store, batch_size=5)})["run"]
    assert written.summary == bounds.close_summary(expected.summary, bounds.of_score(N))
    assert written.name == "run"
    assert written.metadata["source"] == str(Path("run") / "model")
    assert written.metadata["backbone"] == "test_resnet"
    assert written.metadata["training"] == model.provenance.training
    assert main([*command, "--images", place, "--join_on", "name", "--out", "mine"]) == 0
    again = Evaluation.load(tmp_path / "mine" / "run")
    assert again.summary == bounds.close_summary(written.summary, bounds.of_score(N))


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_run_is_evaluated_as_it_was_validated(tmp_path, capsys, monkeypatch, lora):
    monkeypatch.chdir(tmp_path)
    augmentation = AugmentationConfig(eval_resize=40, interpolation="bilinear")
    options = {"model": {"lora": lora}, "augmentation": augmentation, "epochs": 1}
    fine_tune(a_run_config(data_in(tmp_path), "test_vit", **options), "run", progress=False)
    assert main(["evaluate", "--progress", "false", "--store", "store", "--finetuned", "run", "--workers", "1"]) == 0
    summary = Evaluation.load("run/evaluations/run").summary
    validated = validation_measures("run")
    names = {"score": "score_mean", "score_zero_filled": "score_mean_zero_filled", "top1": "top1", "top5": "top5"}
    names |= {name: name for name in ("purity_binary", "purity_weighted")}
    expected = {names[name]: value for name, value in validated.items() if name in names}
    # merged updates and larger batches move activations by 4e-5 of their size, and scores by a few times that
    assert {name: summary[name] for name in names.values()} == bounds.close_summary(expected, 1e-4)


def test_a_report_of_a_run_shows_the_images_of_the_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fine_tune(a_run_config(data_in(tmp_path), epochs=1), "run", progress=False)
    greys = np.arange(10, 250, 20, dtype=np.uint8)  # of the rows
    images = labelled(tmp_path / "images")
    shown = store_of(tmp_path / "shown", images, thumbnails=greys.repeat(64).reshape(N, 8, 8, 1))
    assert main(["evaluate", "--progress", "false", "--store", "shown", "--finetuned", "run"]) == 0
    assert main(["report", "--progress", "false", "run", "--out", "pages"]) == 0
    assert capsys.readouterr().err == ""
    data = page_data(tmp_path / "pages")
    items, metadata = data["items"]["store-0/0"], data["stores"]["store-0"]
    assert sorted(row for _, _, row in items) == list(range(N))
    for item, (name, classes, row) in enumerate(items):
        assert (name, classes) == (shown.ids[row], [int(shown.labels()[row])])
        cell = cell_of(tmp_path / "pages", metadata, "store-0", item)
        assert np.abs(cell.astype(int) - int(greys[row])).max() <= 6
    activations = ImageActivations(load_finetuned("run/model"), images, shown).rows(0, N)
    latent = int(activations.std(0).argmax())
    top = [items[item][2] for item, _ in data["blocks"]["run-0/0"][latent]["top"]]
    assert top[0] == int(activations[:, latent].argmax())


def test_a_report_compares_fine_tuned_runs_with_the_one_without_monoloss(tmp_path, images, store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = DataConfig(f"imagefolder:{tmp_path / 'images'}", validation="imagefolder:images", embeddings="store")
    a_run(tmp_path / "strong", data, mono_weight=0.1, mono_memory=0.9, mono_center=True)
    a_run(tmp_path / "plain", data)
    a_run(tmp_path / "elsewhere" / "plain", replace(data, images="imagefolder:elsewhere"), mono_weight=0.2)
    runs = ["strong", "plain", "elsewhere/plain"]
    for run in runs:
        assert main(["evaluate", "--progress", "false", "--store", "store", "--finetuned", run]) == 0
    assert main(["report", "--progress", "false", *runs[:2], "--out", "two"]) == 0
    shown = [(run["name"], run["group"], run["baseline"]) for run in page_data(tmp_path / "two")["runs"]]
    assert shown == [("strong", "Fine-tuned test_resnet", False), ("plain", "Fine-tuned test_resnet", True)]
    page = (tmp_path / "two" / "index.html").read_text(encoding="utf-8")
    assert "What MonoLoss changed" in page
    assert "MonoLoss, weight 0.1, memory 0.9, centred" in page
    assert "without MonoLoss" in page
    assert "90 epochs, batches of 1024, learning rate 0.01, seed 42" in page

    found = [one.evaluation for one in find_evaluations(runs)]
    assert [one.name for one in found] == ["strong", f"{tmp_path.name}-plain", "elsewhere-plain"]
    groups = [run.group for run in report_runs(found)]
    assert groups[0] == groups[1] != groups[2]
    assert groups[2] == "Fine-tuned test_resnet, from random weights, on imagefolder:elsewhere"
    assert main(["report", "--progress", "false", "strong", "--out", "one"]) == 0
    assert 'data-term="baseline"' not in (tmp_path / "one" / "index.html").read_text(encoding="utf-8")


@pytest.mark.door
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ["--finetuned", "nowhere"],
            "nowhere: got no such folder; expected the folder of a fine-tuned model, or of a finished run",
        ),
        (
            ["--finetuned", "store"],
            "store: got a folder without a fine-tuned model; expected the folder of a fine-tuned model",
        ),
        (
            ["--finetuned", "run"],
            "images: got nothing; expected the images of the store: the model's run had no held-out",
        ),
        (
            ["--activations", "a.npy", "--images", "imagefolder:images"],
            "--images: got 'imagefolder:images'; expected fine-",
        ),
        (
            ["--saes", "run"],
            "run: got a fine-tuned model; expected a SAE; fine-tuned models are given by --finetuned",
        ),
        (["--finetuned", "run", "--split", "val"], "--split: got 'val'; expected images to make use of it"),
        (["--finetuned", "run", "--images", "imagefolder:nowhere"], "nowhere"),
    ],
)
def test_what_the_command_refuses(tmp_path, store, capsys, monkeypatch, options, text):
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "run", DataConfig("imagefolder:images"))
    assert main(["evaluate", "--progress", "false", "--store", "store", *options]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "run" / "evaluations").exists()


@pytest.mark.door
def test_a_model_that_does_not_say_where_it_comes_from():
    with pytest.raises(
        InputError, match=r"images: got nothing; expected the images of the store: the model does not rec"
    ):
        images_of_run(a_model())
