"""A fine-tuning run: what it trains, what it leaves in its folder, and how it goes on after a stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monoloss.cli import main
from monoloss.errors import InputError
from monoloss.finetune.config import AugmentationConfig, DataConfig, FineTuneConfig, LoraConfig, OptimisationConfig
from monoloss.finetune.config_files import FineTuneRecord, finetune_text, read_finetune
from monoloss.finetune.images.seeds import seed_of
from monoloss.finetune.model.folder import load_finetuned
from monoloss.finetune.model.model import FineTuneModel
from monoloss.finetune.module import FineTuneModule
from monoloss.finetune.optimiser import make_sgd
from monoloss.finetune.run import decay_of, fine_tune, open_data, sgd_of, training_batches, validation_batches
from monoloss.finetune.run_folder import validation_measures
from monoloss.functional.loss import mono_loss
from monoloss.runs.checkpoints import checkpoints_in, step_of
from support import bounds
from support.finetune_models import model_of
from support.finetune_runs import N_STEPS, a_run, assert_equal_weights, data_in, logged_by, trained, without_average
from support.image_folders import labelled, store_of

PATIENCE_S = 600.0


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    return data_in(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, trained(a_run(data), folder)


def by_hand(config: FineTuneConfig) -> tuple[FineTuneModel, FineTuneModel]:
    """The same training, plainly: the weights, and their average."""
    data = open_data(config.data)
    model = model_of(config.model, data.class_names, config.seed).train()
    batches = training_batches(config, data, model.preprocessing)
    recipe = sgd_of(config, len(batches))
    sgd, factor = make_sgd(model, recipe), recipe.factor
    average, n_averaged = None, 0
    warmup = config.optimisation.warmup_epochs * len(batches)
    for step in range(config.epochs * len(batches)):
        if step % len(batches) == 0:
            rest = iter(batches)
        batch = next(rest)
        for group in sgd.param_groups:
            group["lr"] = config.optimisation.lr * factor(step)
        torch.manual_seed(seed_of("step", config.seed, step, 0))
        logits, activations = model.forward_both(batch["images"])
        loss = F.cross_entropy(logits, batch["targets"])
        loss = loss + config.mono_weight * mono_loss(batch["embeddings"], activations)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        if step % config.optimisation.ema_every_steps == 0:
            decay = 0.0 if n_averaged == 0 or step < warmup else config.optimisation.ema_decay
            state = {name: value.clone() for name, value in model.state_dict().items()}
            if average is not None:
                state = {name: decay * average[name] + (1 - decay) * value for name, value in state.items()}
            average, n_averaged = state, n_averaged + 1
    averaged = model_of(config.model, data.class_names)
    averaged.load_state_dict({name: value.to(model.state_dict()[name].dtype) for name, value in average.items()})
    return model.eval(), averaged.eval()


def test_it_trains_as_a_loop_by_hand(data, tmp_path):
    config = a_run(data)
    config = replace(config, optimisation=replace(config.optimisation, warmup_epochs=1, ema_decay=0.4))
    plain, averaged = by_hand(config)
    for expected, settings in ((plain, without_average(config)), (averaged, config)):
        got = trained(settings, tmp_path / f"run {settings.optimisation.ema_decay}")
        for name, value in expected.state_dict().items():
            if "num_batches_tracked" not in name:
                torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.allclose(plain.new_layer.weight, averaged.new_layer.weight, rtol=1e-5, atol=1e-6)


def test_what_is_in_the_folder(data, whole):
    folder, weights = whole
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "logs",
        "checkpoints",
        "validation.json",
        "model",
    }
    loaded = load_finetuned(folder / "model")
    assert_equal_weights(loaded.state_dict(), weights)
    joined = open_data(data).train
    assert loaded.provenance.store_fingerprint == joined.store.fingerprint
    assert loaded.provenance.training["mono_weight"] == 0.1
    record = read_finetune(folder / "config.yaml")
    assert record.config == a_run(data)
    assert record.train_fingerprint == joined.fingerprint
    lines = logged_by(folder)
    assert [line["step"] for line in lines if line["loss"]] == [str(N_STEPS - 1)]  # a short run logs its last step
    last = [line for line in lines if line["val_top1"]][-1]
    figures = validation_measures(folder)
    assert {f"val_{name}" for name in figures} == {name for name in last if name.startswith("val_")}
    for name, value in figures.items():
        assert float(last[f"val_{name}"]) == pytest.approx(value, rel=1e-6)


def test_what_is_validated_is_the_average_as_it_is_saved(data, whole):
    folder, _ = whole
    model, config = load_finetuned(folder / "model"), a_run(data)
    batches = validation_batches(config, open_data(data), model.preprocessing)
    with torch.no_grad():
        right = sum(int((model(batch["images"]).argmax(1) == batch["targets"]).sum()) for batch in batches)
    figures = validation_measures(folder)
    assert figures["top1"] == right / 12
    assert any(float(torch.tensor(value)) != value for value in figures.values())  # they are not rounded to float32


def test_a_run_is_validated_at_its_end_whatever_the_interval(data, tmp_path):
    config = a_run(data, validate_every_epochs=2, epochs=3)
    trained(config, tmp_path / "run")
    assert sum(bool(line["val_top1"]) for line in logged_by(tmp_path / "run")) == 1
    last = logged_by(tmp_path / "run", version=1)[-1]
    score = validation_measures(tmp_path / "run")["score"]
    assert float(last["val_score"]) == pytest.approx(score, nan_ok=True)  # that very number, rounded to float32


def test_without_held_out_images_there_are_no_figures(data, tmp_path):
    config = a_run(DataConfig(data.images), mono_weight=0.0, epochs=1)
    trained(config, tmp_path)
    assert validation_measures(tmp_path) == {}


def test_evaluation_is_saved_as_the_run_did_it(data, tmp_path):
    config = a_run(data, epochs=1, augmentation=AugmentationConfig(eval_resize=40, interpolation="bicubic"))
    model = fine_tune(config, tmp_path, progress=False)
    assert model.preprocessing["crop_pct"] == pytest.approx(32 / 40.5)
    assert model.preprocessing["interpolation"] == "bicubic"
    same = validation_batches(a_run(data), open_data(data), model.preprocessing)
    batches = validation_batches(config, open_data(data), model_of(config.model, ["a", "b"]).preprocessing)
    assert torch.equal(next(iter(same))["images"], next(iter(batches))["images"])


class StopIn:
    """Something that happens in the middle of some batches, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batch: int, signum: int | None = None) -> None:
        real, self.n_batches = FineTuneModule.training_step, 0

        def hit(module: Any, batch_: Any, batch_idx: int) -> Any:
            self.n_batches += 1
            if self.n_batches == batch:
                if signum is None:
                    raise ZeroDivisionError
                signal.raise_signal(signum)
            return real(module, batch_, batch_idx)

        monkeypatch.setattr(FineTuneModule, "training_step", hit)


@pytest.fixture
def python_answers_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_answers_ctrl_c")
@pytest.mark.parametrize(
    ("signum", "batch", "raised"), [(signal.SIGINT, 2, KeyboardInterrupt), (signal.SIGTERM, 3, SystemExit)]
)
def test_a_signal_saves_the_step_and_the_run_goes_on(data, whole, tmp_path, monkeypatch, capsys, signum, batch, raised):
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # as of a caller; SIG_DFL would end the tests
    try:
        with monkeypatch.context() as patch:
            StopIn(patch, batch, signum)
            with pytest.raises(raised) as caught:
                trained(a_run(data), tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    if raised is SystemExit:
        assert caught.value.code == 143
    assert [step_of(path) for path in checkpoints_in(tmp_path / "checkpoints")] == [batch]
    assert f"stopped after step {batch}, and saved" in capsys.readouterr().err
    assert_equal_weights(trained(a_run(data), tmp_path, resume=True), whole[1])


@pytest.mark.parametrize("batch", [2, 4])
def test_a_crash_costs_what_came_after_the_last_checkpoint(data, whole, tmp_path, monkeypatch, batch):
    config = a_run(data, checkpoint_every_steps=2)
    with monkeypatch.context() as patch:
        StopIn(patch, batch)
        with pytest.raises(ZeroDivisionError):
            trained(config, tmp_path)
    assert_equal_weights(trained(config, tmp_path, resume=True), whole[1])


def test_a_run_of_which_only_the_model_is_missing(data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("monoloss.finetune.run.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(a_run(data), tmp_path)
    assert_equal_weights(trained(a_run(data), tmp_path, resume=True), whole[1])
    assert validation_measures(tmp_path) == bounds.close_summary(validation_measures(whole[0]), bounds.of_score(12))


def test_a_finished_run_gives_its_model(data, whole, capsys):
    folder, weights = whole
    assert_equal_weights(trained(a_run(data), folder, resume=True), weights)
    assert "is finished" in capsys.readouterr().err


@pytest.mark.slow
def test_accumulated_and_resumed(data, tmp_path, monkeypatch):
    """With low-rank updates and dropout, whose draws belong to their step."""
    lora = {"lora": LoraConfig(rank=2, dropout=0.5)}
    config = a_run(data, "test_vit", model=lora, batch_size=3, accumulate_batches=2, mono_memory=0.5, mono_center=True)
    expected = trained(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        StopIn(patch, 7)
        with pytest.raises(ZeroDivisionError):
            trained(replace(config, checkpoint_every_steps=1), tmp_path / "run")
    assert [step_of(path) for path in checkpoints_in(tmp_path / "run" / "checkpoints")] == [3, 2]
    got = trained(replace(config, checkpoint_every_steps=1), tmp_path / "run", resume=True)
    assert_equal_weights(got, expected)


def test_the_caller_s_chance_is_left_alone(data, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained(a_run(data, epochs=1), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_on_and_batch_norms_learn(data, tmp_path):
    """timm gives models as for inference."""
    config = without_average(a_run(data, epochs=1))
    model = fine_tune(config, tmp_path, progress=False)
    counts = [layer.num_batches_tracked for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert counts
    assert {int(count) for count in counts} == {3}


def refused(config: FineTuneConfig, folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as refusal:
        fine_tune(config, folder, progress=False, **options)
    return str(refusal.value)


@pytest.mark.door
def test_what_cannot_be_trained_is_refused_before_anything_is_made(data, tmp_path):
    images = labelled(Path(data.images.removeprefix("imagefolder:")))
    other = store_of(tmp_path / "other", images, ids=[f"other/{name}" for name in images.ids])
    text = refused(a_run(replace(data, embeddings=str(other.folder))), tmp_path / "run")
    assert text.startswith("data.embeddings: got ")
    assert "batch_size: got 64" in refused(a_run(data, batch_size=64), tmp_path / "run")
    assert refused(a_run(data, "test_resnets"), tmp_path / "run").startswith("model.backbone: got ")
    with_lora = a_run(data, model={"lora": LoraConfig(rank=4)})
    assert refused(with_lora, tmp_path / "run").startswith("model.lora: got low-rank updates for ")
    assert not (tmp_path / "run").exists()


@pytest.mark.door
def test_another_run_in_the_folder_is_refused(data, whole, tmp_path):
    folder, _ = whole
    config = a_run(data)
    assert "expected a new folder, or --resume (resume=True)" in refused(config, folder)
    text = refused(replace(config, mono_weight=0.2), folder, resume=True)
    assert text.startswith("mono_weight: got 0.2; expected 0.1 as in ")
    moved = data_in(tmp_path)
    fine_tune(a_run(moved), folder, resume=True, progress=False)  # the same data elsewhere
    shorter = replace(data, validation=None, validation_embeddings=None)
    assert refused(a_run(shorter), folder, resume=True).startswith("validation_fingerprint: got None; expected")


@pytest.mark.door
def test_weights_that_are_no_numbers_are_not_saved(data, tmp_path):
    config = without_average(a_run(DataConfig(data.images), mono_weight=0.0, log_every_steps=1))
    config = replace(config, optimisation=replace(config.optimisation, lr=1e30))
    assert "the training has diverged" in refused(config, tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.mark.door
def test_a_learning_rate_that_is_too_large_is_named(data, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(finetune_text(FineTuneRecord(a_run(data))), encoding="utf-8")
    begin = ["finetune", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"), "--progress", "false"]
    assert main([*begin, "--epochs", "2", "--optimisation.lr", "1e9"]) == 2
    assert main([*begin[:4], str(tmp_path / "one"), *begin[5:], "--epochs=1", "--optimisation.lr=1e30"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("monoloss: optimisation.lr: got ")
        assert line.endswith("expected a smaller lr or mono_weight: the training has diverged")


def test_the_average_s_decay():
    optimisation = OptimisationConfig(ema_decay=0.9, ema_every_steps=2)
    config = a_run(DataConfig("cifar10:data"), mono_weight=0.0, optimisation=optimisation, accumulate_batches=3)
    assert decay_of(config) == pytest.approx(0.0)  # 0.1 * 4 * 3 * 2 / 2 is more than 1
    config = replace(config, epochs=12)
    assert decay_of(config) == pytest.approx(1 - 0.1 * 4 * 3 * 2 / 12)
    assert decay_of(replace(config, optimisation=replace(optimisation, ema_adjusted=False))) == pytest.approx(0.9)


def test_the_command(data, tmp_path, capsys):
    record = FineTuneRecord(a_run(data))
    (tmp_path / "run.yaml").write_text(finetune_text(record), encoding="utf-8")
    begin = ["finetune", "--config", str(tmp_path / "run.yaml"), "--mono_weight", "0.05", "--epochs=1"]
    assert main([*begin, "--optimisation.lr", "1e-3", "--print_config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    again = read_finetune(tmp_path / "printed.yaml").config
    assert (again.mono_weight, again.epochs, again.optimisation.lr) == (0.05, 1, 1e-3)
    assert main([*begin, "--out", str(tmp_path / "run"), "--progress", "false"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "held out" in shown
    assert str(tmp_path / "run" / "model") in shown
    assert load_finetuned(tmp_path / "run" / "model").provenance.training["mono_weight"] == 0.05
    assert main(["finetune", "--resume", str(tmp_path / "run"), "--data.workers", "0"]) == 0


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--out", "x"], "--config: got nothing; expected a YAML file"),
        (["--config", "none.yaml", "--out", "x"], "none.yaml: got No such file or directory"),
        (["--resume", "x", "--epochs", "3"], "--epochs: got a value beside --resume"),
        (["--resume", "x"], "x/config.yaml: got no such file; expected the folder of a run"),
        (["--config", "c.yaml", "--epoch", "3"], "--epoch: got an unknown key; expected epochs, if that was meant"),
        (["--config", "c.yaml", "--epochs"], "--epochs: got nothing; expected a value"),
        (["--config", "c.yaml"], "--out: got nothing; expected a folder for the run"),
        (["--config", "c.yaml", "--model.lora.ranks", "3"], "model.lora.ranks: got an unknown key; expected rank, if"),
        (["--config", "c.yaml", "--data.embeddings", "null"], "data.embeddings: got nothing; expected a feature store"),
    ],
)
@pytest.mark.door
def test_commands_that_cannot_be_run(data, tmp_path, monkeypatch, capsys, argv, text):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(finetune_text(FineTuneRecord(a_run(data))), encoding="utf-8")
    assert main(["finetune", *argv]) == 2
    assert capsys.readouterr().err.startswith(f"monoloss: {text}")
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def started(*argv: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "monoloss.cli", "finetune", *argv, "--progress", "false"]
    around = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    around["PYTHONPATH"] = os.pathsep.join(part for part in sys.path if part)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=around)


def finished(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err


@pytest.mark.slow
def test_killed_in_mid_epoch(data, tmp_path):
    """A real ``monoloss finetune``, killed and terminated, ends with the bits of one that was not."""
    config = a_run(data, epochs=12, checkpoint_every_steps=1, validate_every_epochs=20)
    file, run = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(finetune_text(FineTuneRecord(config)), encoding="utf-8")
    begin = ("--config", str(file), "--out")
    finished(started(*begin, str(tmp_path / "whole")))
    for i, (signum, step) in enumerate([(signal.SIGKILL, 4), (signal.SIGTERM, 10), (signal.SIGKILL, 17)]):
        process = started("--resume", str(run)) if i else started(*begin, str(run))
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and process.poll() is None:
            if any(step_of(path) >= step for path in checkpoints_in(run / "checkpoints")):
                break
            time.sleep(0.002)
        process.send_signal(signum)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == (143 if signum == signal.SIGTERM else -signum), err
        assert not (run / "model").exists()
    finished(started("--resume", str(run)))
    path = Path("model", "model.safetensors")
    assert (run / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_processes_train_as_one(data, tmp_path):
    """With a transformer, which has no statistics of a batch.

    MonoLoss has a weight under which roundings grow 3-fold in these steps; at ten times that weight, 5000-fold.
    """
    config = a_run(data, "test_vit", augmentation=AugmentationConfig(), mono_memory=0.5, epochs=3)
    file = tmp_path / "run.yaml"
    file.write_text(finetune_text(FineTuneRecord(config)), encoding="utf-8")
    alone = trained(config, tmp_path / "alone")

    def both(*argv: str) -> list[subprocess.Popen[str]]:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place |= {"GLOO_SOCKET_IFNAME": "lo", "TORCHELASTIC_RUN_ID": "one", "CUDA_VISIBLE_DEVICES": ""}
        place |= {"GROUP_RANK": "0"}
        return [started(*argv, **place, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in (0, 1)]

    processes = both("--config", str(file), "--out", str(tmp_path / "run"))
    for process in processes:
        finished(process)
    got = load_finetuned(tmp_path / "run" / "model").state_dict()
    for name, value in alone.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)
    one, two = validation_measures(tmp_path / "alone"), validation_measures(tmp_path / "run")
    assert two == bounds.close_summary(one, 1e-3)
