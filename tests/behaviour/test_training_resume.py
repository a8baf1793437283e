"""A run that was killed and resumed ends with the bits of one that was not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from monoloss import FeatureStore, InputError, SparseAutoencoder
from monoloss.runs import checkpoints
from monoloss.runs.folder import RunFolder
from monoloss.training.run import train_saes
from support import gpu_streams
from support.resumed_runs import (
    ALL_FOUR,
    Killed,
    all_bits,
    check_same_state,
    config_of,
    logged_lines,
    train_until_killed,
)
from support.saes import structured_store
from support.training_runs import a_run, training_store

N_BATCHES = 18  # 6 an epoch
OFTEN: dict[str, Any] = {"checkpoint_every_steps": 1, "log_every_steps": 2}
PLACES = (1, 7, 18)  # the first of all, the first of an epoch, the last of all


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return training_store(tmp_path_factory.mktemp("training") / "store")


@pytest.fixture(autouse=True)
def _same_generator():
    torch.manual_seed(7)


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """Runs that were not killed, and saved at their end alone, by the batches of a step."""
    runs = {}
    torch.manual_seed(7)
    for accumulate in (1, 2):
        folder = tmp_path_factory.mktemp("whole") / "run"
        config = config_of(accumulate_batches=accumulate, checkpoint_every_minutes=None, log_every_steps=2)
        runs[accumulate] = folder, all_bits(train_saes(store, config, folder, progress=False))
    return runs


def check_equal(whole, folder, saes, accumulate=1):
    """Weights, thresholds, counters; optimiser, schedules, MonoLoss's memory, generators, batches; logged figures."""
    reference, bits = whole[accumulate]
    got = all_bits(saes)
    assert [name for name in bits if got[name] != bits[name]] == []
    check_same_state(folder, reference)
    assert logged_lines(folder) == logged_lines(reference)


@pytest.mark.parametrize(
    "batch", [each if each in PLACES else pytest.param(each, marks=pytest.mark.slow) for each in range(1, 19)]
)
def test_killed_at_any_batch(store, whole, tmp_path, batch):
    config = config_of(**OFTEN)
    train_until_killed(store, config, tmp_path, batch)
    assert not (tmp_path / "saes").exists()
    n_saved = len(list((tmp_path / "checkpoints").glob("*")))
    assert n_saved == min(batch - 1, config.keep_checkpoints)
    check_equal(whole, tmp_path, train_saes(store, config, tmp_path, resume=True, progress=False))


@pytest.mark.parametrize("batch", [4, 7, 18])
def test_killed_while_the_next_batch_is_on_its_way_to_a_gpu(store, whole, tmp_path, monkeypatch, batch):
    read = gpu_streams.send_training_batches(monkeypatch)
    config = config_of(**OFTEN)
    train_until_killed(store, config, tmp_path, batch)
    assert len(read) > batch or batch % 6 == 0  # an epoch has no batch after its sixth
    check_equal(whole, tmp_path, train_saes(store, config, tmp_path, resume=True, progress=False))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("first", [7, pytest.param(None, marks=pytest.mark.slow)])
def test_killed_twice(store, tmp_path, accumulate, first):
    """What is saved after a resume is as good as before: also where that began an epoch, as after 6 batches."""
    config = a_run({"a": ALL_FOUR["vanilla"]}, accumulate_batches=accumulate, checkpoint_every_steps=1)
    train_saes(store, config, tmp_path / "whole", progress=False)
    for one in (2, 6, 7, 10, 13) if first is None else [first]:
        train_until_killed(store, config, tmp_path / "once", one)
        left = N_BATCHES - (one - 1) // accumulate * accumulate
        for other in range(2, left) if first is None else [4]:
            shutil.copytree(tmp_path / "once", tmp_path / "run")
            train_until_killed(store, config, tmp_path / "run", other, resume=True)
            train_saes(store, config, tmp_path / "run", resume=True, progress=False)
            check_same_state(tmp_path / "run", tmp_path / "whole")
            shutil.rmtree(tmp_path / "run")
        shutil.rmtree(tmp_path / "once")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_again_and_again_with_two_batches_a_step(store, whole, tmp_path, seed):
    """Also between the two batches of a step, and with steps that were not saved."""
    draw = random.Random(seed)
    config = config_of(accumulate_batches=2, checkpoint_every_steps=2 + seed, log_every_steps=2)
    train_until_killed(store, config, tmp_path, draw.randint(5, 8))
    for _ in range(2):
        train_until_killed(store, config, tmp_path, draw.randint(2, 5), resume=True)
    saes = train_saes(store, config, tmp_path, resume=True, progress=False)
    check_equal(whole, tmp_path, saes, accumulate=2)


@pytest.mark.parametrize(
    "how", ["a byte", *(pytest.param(how, marks=pytest.mark.slow) for how in ("cut", "empty", "other things"))]
)
def test_a_torn_checkpoint_is_left_out_with_a_note(store, whole, tmp_path, capsys, how):
    config = config_of(**OFTEN)
    train_until_killed(store, config, tmp_path, 9)
    older, newest = sorted((tmp_path / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    if how == "a byte":
        content[len(content) // 2] ^= 1
    if how == "other things":
        torch.save({"weights": torch.ones(3)}, newest)
    else:
        newest.write_bytes({"cut": content[:-20], "a byte": content, "empty": b""}[how])
    saes = train_saes(store, config, tmp_path, resume=True, progress=False)
    note = capsys.readouterr().err
    assert f"{newest} cannot be read" in note
    assert str(older) not in note
    check_equal(whole, tmp_path, saes)


def test_killed_while_a_checkpoint_was_written(store, whole, tmp_path, monkeypatch):
    config, save = config_of(**OFTEN), torch.save

    def killed(content: Any, path: Path) -> None:
        save(content, path)
        if content["global_step"] == 4:
            path.write_bytes(path.read_bytes()[:1000])
            raise Killed

    monkeypatch.setattr(checkpoints.torch, "save", killed)
    with pytest.raises(Killed):
        train_saes(store, config, tmp_path, progress=False)
    monkeypatch.undo()
    left = tmp_path / "checkpoints" / ".step=00000004.ckpt.0123abcd.tmp"  # as kill -9 leaves it
    left.mkdir()
    (left / "step=00000004.ckpt").write_bytes(b"half")
    assert sorted(path.name for path in left.parent.glob("step*")) == ["step=00000002.ckpt", "step=00000003.ckpt"]
    check_equal(whole, tmp_path, train_saes(store, config, tmp_path, resume=True, progress=False))
    assert not left.exists()


def test_killed_at_the_very_end_needs_no_more_training(store, whole, tmp_path, monkeypatch):
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SparseAutoencoder, "save_pretrained", killed)
        with pytest.raises(Killed):
            train_saes(store, config_of(**OFTEN), tmp_path, progress=False)
    assert not (tmp_path / "saes").exists()
    with monkeypatch.context() as patch:
        patch.setattr("monoloss.training.run.SaeTrainingModule.training_step", killed)
        saes = train_saes(store, config_of(**OFTEN), tmp_path, resume=True, progress=False)
    check_equal(whole, tmp_path, saes)


def test_bfloat16_resumes_as_exactly(store, tmp_path):
    config = config_of(precision="bf16-mixed", epochs=1, **OFTEN)
    bits = all_bits(train_saes(store, config, tmp_path / "whole", progress=False))
    train_until_killed(store, config, tmp_path / "run", 4)
    assert all_bits(train_saes(store, config, tmp_path / "run", resume=True, progress=False)) == bits


def test_global_generators_resume_too(store, tmp_path):
    """Nothing here draws from them, but what a user puts into a run may."""
    config = config_of(epochs=1, **OFTEN)
    torch.manual_seed(1)
    train_until_killed(store, config, tmp_path, 4)
    torch.rand(3)
    state = torch.get_rng_state()
    train_saes(store, config, tmp_path, resume=True, progress=False)
    torch.manual_seed(1)
    assert not torch.equal(torch.get_rng_state(), state)
    train_saes(store, config, tmp_path / "other", progress=False)
    check_same_state(tmp_path, tmp_path / "other")


def test_a_finished_run_gives_its_saes(store, whole, tmp_path, capsys):
    folder, bits = whole[1]
    config = config_of(checkpoint_every_minutes=None, log_every_steps=2)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert all_bits(train_saes(store, config, folder, resume=True, progress=False)) == bits
    assert "is finished" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_resuming_where_nothing_is_begins(store, tmp_path):
    """So that one command can stand in a queue that starts it again and again."""
    train_saes(store, config_of(epochs=1), tmp_path / "new", resume=True, progress=False)
    assert (tmp_path / "new" / "saes").exists()


@pytest.mark.door
def test_what_cannot_be_resumed(store, tmp_path):
    config, run = config_of(**OFTEN), tmp_path / "run"
    train_until_killed(store, config, run, 3)
    other_store = structured_store(tmp_path / "other", 330, seed=5)
    for arguments, text in (
        ((store, config, False), f"{run}: got a folder that holds a run; expected a new folder, or --resume"),
        ((store, config_of(epochs=4, **OFTEN), True), f"epochs: got 4; expected 3 as in {run / 'config.yaml'}"),
        ((store, config_of(seed=1, **OFTEN), True), "seed: got 1; expected 42 as in"),
        ((other_store, config, True), f"store_fingerprint: got '{other_store.fingerprint}'; expected '"),
    ):
        with pytest.raises(InputError) as caught:
            train_saes(*arguments[:2], run, resume=arguments[2], progress=False)
        assert str(caught.value).startswith(text)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace("epochs: 3", "epochs: 4"), encoding="utf-8")
    with pytest.raises(InputError, match=r"epochs: got 4; expected 3 as in .*step=00000002.ckpt"):
        train_saes(store, config_of(epochs=4, **OFTEN), run, resume=True, progress=False)
    (run / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config.yaml: got no such file"):
        train_saes(store, config, run, resume=True, progress=False)


def test_a_store_that_was_moved_is_the_same_store(store, tmp_path):
    config = config_of(epochs=1, **OFTEN)
    train_until_killed(store, config, tmp_path / "run", 3)
    FeatureStore.create(tmp_path / "moved", store.embeddings(), store.labels(), rows_per_shard=100)
    moved = FeatureStore(tmp_path / "moved")
    assert moved.fingerprint == store.fingerprint
    train_saes(moved, config, tmp_path / "run", resume=True, progress=False)


def test_a_run_of_which_nothing_was_saved_makes_place(store, tmp_path):
    train_until_killed(store, config_of(), tmp_path, 3)
    assert (tmp_path / "config.yaml").exists()
    train_saes(store, config_of(epochs=1), tmp_path, progress=False)
    assert "epochs: 1" in (tmp_path / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.door
def test_two_at_once_in_one_folder(store, tmp_path, monkeypatch):
    config, refused = config_of(epochs=1), []

    def meanwhile(*_: Any, **__: Any) -> None:
        for resume in (False, True):
            with pytest.raises(InputError, match="another process is training") as caught:
                train_saes(store, config, tmp_path, resume=resume, progress=False)
            refused.append(caught)

    monkeypatch.setattr(RunFolder, "write_or_check_config", meanwhile)
    train_saes(store, config, tmp_path, progress=False)
    assert len(refused) == 2


def test_moments_in_another_layout_resume_as_well(store, whole, tmp_path):
    """Adam's fused step pairs memory, not places: moments that were saved row by row are laid out again."""
    train_until_killed(store, config_of(**OFTEN), tmp_path, 8)
    for path in (tmp_path / "checkpoints").iterdir():
        content = torch.load(path, weights_only=True)
        for state in content["optimizer_states"][0]["state"].values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].contiguous()
        torch.save(content, path)
    check_equal(whole, tmp_path, train_saes(store, config_of(**OFTEN), tmp_path, resume=True, progress=False))
