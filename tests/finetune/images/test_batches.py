"""Batches of a run: what is in them, and that workers, processes and resuming change nothing."""

from __future__ import annotations

import os
import pickle
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from monoloss.data.images import open_images
from monoloss.errors import InputError
from monoloss.finetune.config import AugmentationConfig, DataConfig, FineTuneConfig, ModelConfig
from monoloss.finetune.data import FineTuneData
from monoloss.finetune.images.batches import ImageBatch, TrainingBatches, _outlive_signals
from monoloss.finetune.images.labelled import LabelledImages
from monoloss.finetune.run import open_data, training_batches, validation_batches
from support import bounds, gpu_streams
from support.gpu_streams import GPU, OnGpu
from support.image_folders import PREPROCESSING, embeddings_of, picture_folder, store_of

EVERYTHING = AugmentationConfig(trivial_augment=True, random_erasing=0.3, mixup=0.2, cutmix=1.0)
PLAIN = AugmentationConfig(min_area=1.0, flip=0.0)


class Run:
    """A folder of 13 images with a store, and configurations over it."""

    def __init__(self, folder: Path) -> None:
        picture_folder(folder / "images")
        (folder / "images/cat/last.png").write_bytes((folder / "images/ant/ant0.png").read_bytes())
        self.images = LabelledImages(open_images(f"imagefolder:{folder}/images"))
        store_of(folder / "store", self.images)
        self.spec, self.store = f"imagefolder:{folder}/images", str(folder / "store")

    def config(self, augmentation: AugmentationConfig = EVERYTHING, workers: int = 0, **options: Any) -> FineTuneConfig:
        data = DataConfig(
            self.spec, validation=self.spec, embeddings=self.store, validation_embeddings=self.store, workers=workers
        )
        return FineTuneConfig(ModelConfig("resnet10t"), data, augmentation, **({"batch_size": 4} | options))

    def batches(self, *arguments: Any, rank: int = 0, world_size: int = 1, **options: Any) -> TrainingBatches:
        config = self.config(*arguments, **options)
        return training_batches(config, self.data(config), PREPROCESSING, rank, world_size)

    def data(self, config: FineTuneConfig) -> FineTuneData:
        return open_data(config.data)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def check_equal(one: list[ImageBatch], other: list[ImageBatch], embeddings_apart: float = 0.0) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            apart = embeddings_apart if name == "embeddings" else 0.0
            torch.testing.assert_close(left[name], right[name], rtol=0, atol=apart, msg=name)


def epochs(batches: TrainingBatches, n: int = 2) -> list[ImageBatch]:
    return [batch for _ in range(n) for batch in batches]


def test_what_is_in_a_batch(run: Run) -> None:
    batches = run.batches(PLAIN)
    rows = torch.nn.functional.normalize(embeddings_of(run.images), dim=1)
    assert len(batches) == 3
    given = list(batches)
    for batch in given:
        positions = batch["positions"]
        assert batch["images"].shape == (4, 3, 12, 12)
        assert torch.equal(batch["targets"], run.images.labels[positions])
        torch.testing.assert_close(batch["embeddings"], rows[positions])
    assert len({int(position) for batch in given for position in batch["positions"]}) == 12


def test_without_a_store(run: Run) -> None:
    config = FineTuneConfig(ModelConfig("resnet10t"), DataConfig(run.spec), PLAIN, batch_size=4)
    data = run.data(config)
    assert data.width is None
    assert data.validation is None
    assert all("embeddings" not in batch for batch in training_batches(config, data, PREPROCESSING))


def test_mixed_batches(run: Run) -> None:
    mixing = AugmentationConfig(min_area=1.0, flip=0.0, mixup=0.5)
    rows = torch.nn.functional.normalize(embeddings_of(run.images), dim=1)
    for mixed, plain in zip(run.batches(mixing), run.batches(PLAIN), strict=True):
        labels = plain["targets"]
        i = next(i for i in range(4) if labels[i] != labels[i - 1])
        share = float(mixed["targets"][i, labels[i]])
        expected = [share * plain[name] + (1 - share) * plain[name].roll(1, 0) for name in ("images", "embeddings")]
        torch.testing.assert_close(mixed["images"], expected[0])
        torch.testing.assert_close(mixed["embeddings"], expected[1])
        torch.testing.assert_close(plain["embeddings"], rows[plain["positions"]])
    kept = AugmentationConfig(min_area=1.0, flip=0.0, mixup=0.5, mix_embeddings=False)
    for mixed, plain in zip(run.batches(kept), run.batches(PLAIN), strict=True):
        assert torch.equal(mixed["embeddings"], plain["embeddings"])


def test_workers_change_nothing(run: Run) -> None:
    torch.manual_seed(0)
    alone = epochs(run.batches())
    torch.manual_seed(1)
    check_equal(alone, epochs(run.batches(workers=2)))


def test_batches_travel_to_workers_that_are_spawned(run: Run) -> None:
    check_equal(epochs(run.batches(), 1), epochs(pickle.loads(pickle.dumps(run.batches())), 1))


def test_torchs_generator_is_left_alone(run: Run) -> None:
    for workers in (0, 1):
        before = torch.get_rng_state()
        epochs(run.batches(workers=workers), 1)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("n_given", [0, 1, 3, 4])
def test_resumed_with_other_workers(run: Run, n_given: int) -> None:
    whole = epochs(run.batches(), 3)
    first = run.batches()
    given = list(islice((batch for _ in range(3) for batch in first), n_given))
    second = run.batches(workers=1)
    second.load_state_dict(first.state_dict())
    rest = []
    while len(given) + len(rest) < 9:
        rest += list(second)
    check_equal(whole, given + rest)


@pytest.mark.parametrize("mixed", [{"repeats": 2}, {"mixup": 0.2}, {"mixup": 0.2, "cutmix": 1.0, "repeats": 2}])
def test_processes_share_a_batch(run: Run, mixed: dict[str, Any]) -> None:
    """Pairs of mixing, too: the first row of a process is mixed with the last one of the process before."""
    options: dict[str, Any] = {"batch_size": 4}
    config = AugmentationConfig(trivial_augment=True, **mixed)
    alone = epochs(run.batches(config, **options))
    shares = [epochs(run.batches(config, **options, rank=rank, world_size=2)) for rank in (0, 1)]
    for batch, one, other in zip(alone, *shares, strict=True):
        joined = {name: torch.cat([one[name], other[name]]) for name in batch}
        check_equal(
            [batch], [joined], bounds.of_sum(5, 1.0, torch.float32)
        )  # unit rows of 5 numbers, of 4 or of 2 to 3 at once


def test_copies_of_an_image_differ(run: Run) -> None:
    batch = next(iter(run.batches(AugmentationConfig(repeats=2), batch_size=4)))
    assert batch["positions"][:2].tolist() == batch["positions"][2:].tolist()
    assert not torch.equal(batch["images"][:2], batch["images"][2:])


def test_an_image_differs_from_epoch_to_epoch(run: Run) -> None:
    batches = run.batches(AugmentationConfig())
    seen = [{int(p): image for batch in batches for p, image in zip(batch["positions"], batch["images"], strict=True)}]
    seen += [{int(p): image for batch in batches for p, image in zip(batch["positions"], batch["images"], strict=True)}]
    both = seen[0].keys() & seen[1].keys()
    assert len(both) >= 11
    assert not any(torch.equal(seen[0][position], seen[1][position]) for position in both)


def test_held_out_images_once_over_processes(run: Run) -> None:
    config = run.config(workers=1)
    data = run.data(config)
    alone = list(validation_batches(config, data, PREPROCESSING))
    assert torch.cat([batch["positions"] for batch in alone]).tolist() == list(range(13))
    shares = [list(validation_batches(config, data, PREPROCESSING, rank, 3)) for rank in range(3)]
    positions = torch.cat([batch["positions"] for share in shares for batch in share])
    assert sorted(positions.tolist()) == list(range(13))
    pixels = torch.cat([batch["images"] for share in shares for batch in share])
    assert torch.equal(pixels[positions.argsort()], torch.cat([batch["images"] for batch in alone]))


@pytest.mark.door
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_sentence(run: Run, workers: int) -> None:
    place = Path(run.spec.removeprefix("imagefolder:"))
    (place / "bee/bee2.png").write_bytes(b"no")
    with pytest.raises(InputError) as error:
        epochs(run.batches(workers=workers))
    got = "an image that cannot be read: bee/bee2.png (not an image in a known format)"
    assert str(error.value) == f"{run.spec}: got {got}; expected images that can be read; take this one away"


@pytest.mark.door
def test_a_state_of_other_data(run: Run, tmp_path: Path) -> None:
    batches = run.batches()
    state = batches.state_dict()
    for name, other in (("batch_size", 6), ("seed", 7), ("data", "0"), ("repeats", 2), ("accumulate", 3)):
        with pytest.raises(InputError, match=f"state.'{name}'.: got {other}; expected that of these batches"):
            batches.load_state_dict({**state, name: other})
    assert batches.state_dict() == state


def test_workers_outlive_signals() -> None:
    """Sent to all processes of a job, a signal ends the main one when it has saved, and no worker before.

    The worker sees what is left until its alarm, in seconds; a worker that nobody ends must not stay for ever.
    """
    child = os.fork()
    if not child:
        _outlive_signals(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        os._exit(signal.alarm(0))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) > 20


def test_workers_end_with_the_last_batch(run: Run) -> None:
    """Lightning never asks a sized iterator for more than it said that it has."""
    iterator = iter(run.batches(workers=2))
    for _ in range(3):
        next(iterator)
    assert not torch.multiprocessing.active_children()
    del iterator


# Batches on a GPU (a stand-in), which are copied one ahead


def on_cpu(batch: ImageBatch) -> ImageBatch:
    assert all(isinstance(tensor, OnGpu) for tensor in batch.values())
    return {name: tensor.values() for name, tensor in batch.items()}


@pytest.mark.parametrize("n_given", [1, 2, 3, 4])
def test_on_a_gpu_the_position_is_that_of_the_batch_handed_out(
    run: Run, monkeypatch: pytest.MonkeyPatch, n_given: int
) -> None:
    expected = epochs(run.batches())
    gpu_streams.install(monkeypatch)
    batches, same = run.batches().to(GPU), run.batches()
    given: list[ImageBatch] = []
    while len(given) < n_given:
        for batch, _ in islice(zip(batches, same, strict=False), n_given - len(given)):
            given.append(on_cpu(batch))
            assert batches.state_dict() == same.state_dict()
    check_equal(given, expected[:n_given])
    other = run.batches().to(GPU)
    other.load_state_dict(batches.state_dict())
    check_equal([on_cpu(batch) for batch in epochs(other)][: 6 - n_given], expected[n_given:])


def test_on_a_gpu_validation_is_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run.config()
    expected = list(validation_batches(config, run.data(config), PREPROCESSING))
    gpu = gpu_streams.install(monkeypatch)
    batches = validation_batches(config, run.data(config), PREPROCESSING).to(GPU)
    check_equal([on_cpu(batch) for batch in batches], expected)
    assert gpu.log.count("compute waits for stream 1") == len(expected)


def test_on_a_gpu_a_broken_image_stops_where_its_batch_is_due(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = gpu_streams.install(monkeypatch)
    config = run.config()
    batches = iter(validation_batches(config, run.data(config), PREPROCESSING).to(GPU))
    broken = run.images.ids[5]  # of the second batch
    (Path(run.spec.removeprefix("imagefolder:")) / broken).write_bytes(b"broken")
    assert len(next(batches)["images"]) == 4
    with pytest.raises(InputError):
        next(batches)
    assert gpu.log.count("compute waits for stream 1") == 1
