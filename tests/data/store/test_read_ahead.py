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

LONG = 30.0  # seconds that nothing here takes, unless it is broken


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
    here = read_ahead(read, range(3), ahead=False)
    assert next(here) == threading.current_thread().name


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


def opened(tmp_path: Path, n: int, width: int, **options: object) -> FeatureStore:
    rows = torch.randn(n, width, generator=torch.Generator().manual_seed(0))
    return FeatureStore.create(tmp_path / "store", rows, **options)


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
    for one, other in zip(read, loaded, strict=True):
        assert one.start == other.start
        assert torch.equal(one.embeddings, other.embeddings)
        assert torch.equal(one.labels, other.labels)
    assert torch.equal(torch.cat([batch.embeddings for batch in read]), store.rows(torch.arange(23)))


def test_batches_of_a_loaded_store_need_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = opened(tmp_path, 10, 2)
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


def test_what_comes_back_can_be_written_to(tmp_path: Path):
    store = opened(tmp_path, 10, 2)
    expected = store.embeddings()
    for _ in range(2):
        store.embeddings().zero_()
        store.rows(torch.arange(10)).zero_()
        next(iter(store.batches(10))).embeddings.zero_()
        assert torch.equal(store.embeddings(), expected)
        store.load()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says which mapped pages are resident")
def test_pages_of_the_files_do_not_pile_up(tmp_path: Path):
    store = opened(tmp_path, 20_000, 256)
    assert sum(len(batch.embeddings) for batch in store.batches(1000)) == 20_000
    assert resident_kb(store.folder) < 1024
    store.rows(torch.arange(20_000))  # what rows by number map counts
    assert resident_kb(store.folder) > 15_000


def resident_kb(folder: Path) -> int:
    """Memory of this process that belongs to mapped files in a folder."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            here = str(folder) in line
        elif here and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.door
def test_a_file_that_changed_after_opening_is_named(tmp_path: Path):
    store = opened(tmp_path, 100, 4)
    file = store.folder / "shard-00000.safetensors"
    whole = file.read_bytes()
    other = file.with_name("other")
    other.write_bytes(whole[:-300])
    other.replace(file)
    with pytest.raises(InputError, match=r"shard-00000.safetensors: got a file that has become shorter; expected"):
        list(store.batches(10))
    file.unlink()
    with pytest.raises(InputError, match=r"shard-00000.safetensors: got an unreadable file .*No such file"):
        store.embeddings()
