"""Reading ahead: order, exceptions and the end as without a thread; the next read begins while one is worked on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from monoloss.data.store import FeatureStore
from monoloss.data.store.read_ahead import read_ahead
from monoloss.errors import InputError
from support.stores import rows_of

LONG = 30.0  # seconds: a wait that only a broken reader exceeds


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_results_in_order(n, ahead):
    assert list(read_ahead(lambda item: item * 10, range(n), ahead=ahead)) == [10 * item for item in range(n)]


def test_the_next_is_read_while_one_is_worked_on():
    begun = [threading.Event() for _ in range(3)]

    def read(item: int) -> str:
        begun[item].set()
        return threading.current_thread().name

    results = read_ahead(read, range(3))
    assert next(results).startswith("read_ahead")
    assert begun[1].wait(LONG)  # nobody has asked for it
    assert not begun[2].is_set()  # one ahead, not two
    assert next(results)
    assert begun[2].wait(LONG)
    without_thread = read_ahead(read, range(3), ahead=False)
    assert next(without_thread) == threading.current_thread().name


@pytest.mark.parametrize("ahead", [True, False])
def test_an_exception_comes_where_its_result_is_due(ahead):
    def read(item: int) -> int:
        if item == 2:
            raise InputError("file", "bytes that changed", "the file as it was")
        return item

    results = read_ahead(read, range(5), ahead=ahead)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(InputError, match="file: got bytes that changed"):
        next(results)
    assert list(results) == []


def test_nothing_is_left_running_when_the_caller_stops():
    def stopped_by(kind: type[BaseException], results: Iterator[int]) -> None:
        for item in results:
            if item == 1:
                raise kind

    before = set(threading.enumerate())
    for kind in (KeyboardInterrupt, ValueError):
        results = read_ahead(lambda item: item, range(100))
        with pytest.raises(kind):
            stopped_by(kind, results)
        results.close()
        assert set(threading.enumerate()) == before


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_batches_are_the_same_from_files_and_from_memory(tmp_path: Path, dtype: str):
    options = {"dtype": dtype, "rows_per_shard": 9, **({"scale": 0.5} if dtype == "uint8" else {})}
    rows = torch.randn(23, 4, generator=torch.Generator().manual_seed(0)).abs() + 0.5
    store = FeatureStore.create(tmp_path / "store", rows, torch.arange(23), **options)
    read = list(store.batches(4))
    threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("read_ahead")}
    assert not threads
    loaded = list(FeatureStore(store.folder).load().batches(4))
    assert [batch.start for batch in read] == [0, 4, 8, 9, 13, 17, 18, 22]
    for from_files, from_memory in zip(read, loaded, strict=True):
        assert from_files.start == from_memory.start
        assert torch.equal(from_files.embeddings, from_memory.embeddings)
        assert torch.equal(from_files.labels, from_memory.labels)
    assert torch.equal(torch.cat([batch.embeddings for batch in read]), store.rows(torch.arange(23)))


def test_batches_of_a_loaded_store_need_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = FeatureStore.create(tmp_path / "store", rows_of(10, 2))
    seen = []
    batch_of = store._batch
    monkeypatch.setattr(
        store, "_batch", lambda *span: (seen.append(threading.current_thread().name), batch_of(*span))[1]
    )
    list(store.batches(5))
    assert all(name.startswith("read_ahead") for name in seen)
    store.load()
    seen.clear()
    list(store.batches(5))
    assert seen == [threading.current_thread().name] * 2
