"""The tensors of the shards by row number: views, copies, memory, files that change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monoloss.data.store import FeatureStore
from monoloss.data.store.format import Manifest
from monoloss.data.store.reader import MappedShards
from monoloss.errors import InputError
from support.stores import rows_of


@pytest.fixture
def shards(store: FeatureStore) -> MappedShards:
    """Ten rows in shards of 3, 3, 3 and 1."""
    return MappedShards(store.folder, Manifest.read(store.folder))


def test_parts_cover_a_range_once(shards: MappedShards) -> None:
    spans = [(shard["labels"].tolist(), first, last) for shard, first, last in shards.parts(2, 7)]
    assert spans == [([0, 1, 2], 2, 3), ([3, 0, 1], 0, 3), ([2, 3, 0], 0, 1)]
    assert [(first, last) for _, first, last in shards.parts(0, None)] == [(0, 3), (0, 3), (0, 3), (0, 1)]
    assert [(first, last) for _, first, last in shards.parts(4, 4)] == [(0, 0)]  # a type for no rows
    assert shards.offsets == [0, 3, 6, 9, 10]


def test_every_range_is_read(shards: MappedShards) -> None:
    rows = rows_of(10)
    for load in (False, True):
        assert shards.is_loaded == load
        for start in range(11):
            for stop in range(start, 11):
                assert torch.equal(shards.range("embeddings", start, stop), rows[start:stop])
                assert torch.equal(shards.read_embeddings(start, stop), rows[start:stop])
        shards.load("cpu")


def test_rows_by_number_in_any_order(shards: MappedShards) -> None:
    for indices in ([9, 0, 0, 4, 3], [], [5]):
        expected = rows_of(10)[torch.tensor(indices, dtype=torch.int64)]
        for integer in (torch.int32, torch.int64):
            assert torch.equal(shards.gather("embeddings", torch.tensor(indices, dtype=integer)), expected)


def test_one_entry_for_several_rows(tmp_path: Path) -> None:
    pictures = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1)
    folder = FeatureStore.create(tmp_path / "s", rows_of(4), thumbnails=pictures, rows_per_shard=2).folder
    shards = MappedShards(folder, Manifest.read(folder))
    shards.offsets = [0, 6, 12]  # as if each image had three rows
    assert shards.gather("thumbnails", torch.tensor([11, 0, 5, 6]), 3).flatten().tolist() == [3, 0, 1, 2]


@pytest.mark.door
def test_numbers_and_ranges_outside_are_refused(shards: MappedShards) -> None:
    with pytest.raises(InputError, match=r"indices: got torch\.int64 of shape \(1, 1\); expected integers of shape"):
        shards.gather("embeddings", torch.tensor([[0]]))
    with pytest.raises(InputError, match=r"indices: got values from -1 to 2; expected .* from 0 to 9"):
        shards.gather("embeddings", torch.tensor([2, -1]))
    with pytest.raises(InputError, match="start, stop: got 4, 3; expected 0 <= start <= stop <= 10"):
        shards.read_embeddings(4, 3)


def test_opening_reads_no_rows(tmp_path: Path) -> None:
    folder = FeatureStore.create(tmp_path / "s", torch.ones(2000, 1000)).folder

    def resident() -> int:
        return sum(int(line.split()[1]) for line in Path("/proc/self/smaps").read_text().splitlines() if "Rss" in line)

    if not Path("/proc/self/smaps").exists():
        pytest.skip("asks Linux for the memory in use")
    FeatureStore(folder).embeddings(0, 1)
    before = resident()
    store = FeatureStore(folder)
    assert store.embeddings(1999, 2000).sum() == 1000
    assert resident() - before < 4000  # of 8000 kB


def test_a_relative_folder_may_be_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FeatureStore.create("s", rows_of(5))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(store.embeddings(), rows_of(5))
    assert [len(batch.embeddings) for batch in store.batches(3)] == [3, 2]


def test_what_comes_back_can_be_written_to(tmp_path: Path):
    store = FeatureStore.create(tmp_path / "store", rows_of(10, 2))
    expected = store.embeddings()
    for _ in range(2):
        store.embeddings().zero_()
        store.rows(torch.arange(10)).zero_()
        next(iter(store.batches(10))).embeddings.zero_()
        assert torch.equal(store.embeddings(), expected)
        store.load()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says which mapped pages are resident")
def test_pages_of_the_files_do_not_pile_up(tmp_path: Path):
    store = FeatureStore.create(tmp_path / "store", rows_of(20_000, 256))
    assert sum(len(batch.embeddings) for batch in store.batches(1000)) == 20_000
    assert resident_kb(store.folder) < 1024
    store.rows(torch.arange(20_000))  # what rows by number map counts
    assert resident_kb(store.folder) > 15_000


def resident_kb(folder: Path) -> int:
    """Memory of this process that belongs to mapped files in a folder."""
    total, in_folder = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            in_folder = str(folder) in line
        elif in_folder and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.door
def test_a_file_that_changed_after_opening_is_named(tmp_path: Path):
    store = FeatureStore.create(tmp_path / "store", rows_of(100, 4))
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
