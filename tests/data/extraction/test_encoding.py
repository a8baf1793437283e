"""Encoding on a GPU (a stand-in) one batch ahead: the bytes, the resumption and the errors are those of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from monoloss.data.extraction.batches import PreparedBatch
from monoloss.data.extraction.encoding import encoded_batches
from monoloss.data.extraction.progress import Timing
from monoloss.data.extraction.run import Extraction
from monoloss.data.images.source import SourceImage
from monoloss.data.store import FeatureStore
from monoloss.data.store.writer import FeatureStoreWriter
from monoloss.errors import InputError
from support import gpu_streams
from support.extraction import FakeEncoder, ListSource, contents_of, silent
from support.gpu_streams import GPU, FakeGpu, OnGpu

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
CPU = torch.device("cpu")
OnCall = Callable[[int, Tensor], Tensor]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return gpu_streams.install(monkeypatch)


def gpu_encoder(on_call: OnCall | None = None, **options: Any) -> FakeEncoder:
    def checked(number: int, rows: Tensor) -> Tensor:
        assert isinstance(rows, OnGpu)
        assert rows.values().isfinite().all(), "the encoder did not wait for its images"
        return rows if on_call is None else on_call(number, rows)

    encoder = FakeEncoder(on_call=checked, **options)
    encoder.device = GPU
    return encoder


def batch_of(number: int, *, empty: bool = False) -> PreparedBatch:
    pixels = None if empty else torch.full((1, 3, 2, 2), float(number))
    return PreparedBatch(0, [SourceImage(number, str(number), None, None, b"")], pixels, None, [])


def log_of(device: torch.device, n: int, fails_at: int | None = None) -> list[str]:
    log: list[str] = []

    def encode(images: Tensor) -> Tensor:
        number = int(images.as_subclass(Tensor)[0, 0, 0, 0])
        log.append(f"encode {number}")
        if number == fails_at:
            raise torch.OutOfMemoryError
        return images.mean(dim=(2, 3))

    try:
        for batch, rows in encoded_batches(map(batch_of, range(n)), encode, device, 7, Timing()):
            log.append(f"given {batch.images[0].id}")
            log.append(f"rows {rows().tolist()[0][0]:.0f}")
    except InputError as error:
        log.append(str(error))
    return log


def test_a_gpu_encodes_the_next_batch_before_rows_are_waited_for(gpu: FakeGpu) -> None:
    given = [["given 0", "rows 0"], ["given 1", "rows 1"], ["given 2", "rows 2"]]
    assert log_of(GPU, 3) == ["encode 0", "encode 1", *given[0], "encode 2", *given[1], *given[2]]
    assert log_of(GPU, 1) == ["encode 0", *given[0]]
    assert log_of(GPU, 0) == []


def test_elsewhere_a_batch_is_encoded_when_its_rows_are_asked_for() -> None:
    assert log_of(CPU, 2) == ["given 0", "encode 0", "rows 0", "given 1", "encode 1", "rows 1"]


@pytest.mark.parametrize("device", [CPU, GPU])
def test_no_memory_for_a_batch(gpu: FakeGpu, device: torch.device) -> None:
    error = f"batch_size: got 7, which does not fit into the memory of {device}; expected a smaller one"
    assert [line for line in log_of(device, 3, fails_at=1) if "encode" not in line and line != "given 1"] == [
        "given 0",
        "rows 0",  # of the batch before, which was on its way
        error,
    ]


@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_batch_without_images(gpu: FakeGpu, device: torch.device) -> None:
    batches = [batch_of(0, empty=True), batch_of(1)]
    first, second = encoded_batches(iter(batches), lambda images: images.mean(dim=(2, 3)), device, 7, Timing())
    assert first.rows() is None
    assert second.rows().tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("patches", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_store_is_that_of_the_cpu(gpu: FakeGpu, tmp_path: Path, stream: bool, patches: bool, workers: int) -> None:
    broken = dict.fromkeys((0, 4, 5, 6, 7, 13), b"x")  # the second shard has no row
    options = {"stream": stream, "labels": "single", "contents": broken}
    silent(ListSource(18, **options), FakeEncoder(patches=patches), tmp_path / "cpu", thumbnails=2)
    source, encoder = ListSource(18, **options), gpu_encoder(patches=patches)
    silent(source, encoder, tmp_path / "gpu", thumbnails=2, workers=workers)
    assert contents_of(tmp_path / "gpu") == contents_of(tmp_path / "cpu")
    assert gpu.log.count("stream 1 copies to the GPU") == gpu.log.count("process waits for stream 2") == encoder.calls


@pytest.mark.parametrize("n_calls", range(1, 7))
def test_killed_and_resumed_is_never_killed(gpu: FakeGpu, tmp_path: Path, n_calls: int) -> None:
    """Rows that were encoded or copied back, but not written, are encoded again."""

    def killed(number: int, rows: Tensor) -> Tensor:
        if number == n_calls:
            raise KeyboardInterrupt
        return rows

    silent(ListSource(14), FakeEncoder(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        silent(ListSource(14), gpu_encoder(killed), tmp_path / "s")
    written = sorted(path.name for path in (tmp_path / "s").glob("*.safetensors"))
    assert len(written) == max(0, n_calls - 2) // 2  # two batches a shard; the last one is on its way
    run = Extraction(
        ListSource(14), gpu_encoder(), tmp_path / "s", workers=0, progress=False, rows_per_shard=4, batch_size=3
    )
    run.run()
    assert run.timing.n_images == 14 - 4 * len(written)
    assert contents_of(tmp_path / "s") == contents_of(tmp_path / "whole")


def test_on_the_cpu_a_shard_is_written_before_the_next_one_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    write = FeatureStoreWriter.write_shard

    def logged(self: FeatureStoreWriter, index: int, *arguments: Any, **options: Any) -> None:
        log.append(f"write {index}")
        write(self, index, *arguments, **options)

    def encoded(number: int, rows: Tensor) -> Tensor:
        log.append(f"encode {number}")
        return rows

    monkeypatch.setattr(FeatureStoreWriter, "write_shard", logged)
    silent(ListSource(8), FakeEncoder(on_call=encoded), tmp_path / "s")
    assert log == ["encode 0", "encode 1", "write 0", "encode 2", "encode 3", "write 1"]
    log.clear()
    gpu_streams.install(monkeypatch)
    silent(ListSource(8), gpu_encoder(encoded), tmp_path / "gpu")
    assert log == ["encode 0", "encode 1", "encode 2", "encode 3", "write 0", "write 1"]
    assert FeatureStore(tmp_path / "gpu").fingerprint == FeatureStore(tmp_path / "s").fingerprint


def test_an_encoder_that_does_not_fit_says_so_as_on_the_cpu(gpu: FakeGpu, tmp_path: Path) -> None:
    def nothing(_: int, rows: Tensor) -> Tensor:
        return rows * torch.nan

    for encoder in (FakeEncoder(on_call=nothing), gpu_encoder(nothing)):
        with pytest.raises(InputError, match="encoder: got NaN or inf for every image of the first batch"):
            silent(ListSource(8), encoder, tmp_path / str(encoder.device.type))
