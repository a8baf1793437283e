"""Shuffled batches: every row at most once an epoch, an order from seed and epoch alone, resumable anywhere."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.runs.shuffling import block_shuffled, shuffled
from monoloss.training.batches import ShuffledBatches
from support import gpu_streams
from support.gpu_streams import GPU, OnGpu
from support.small_blocks import shrink_blocks


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """23 rows in shards of 9; row i is (i + 1, 1), so that a row says which it is."""
    rows = torch.stack([torch.arange(1.0, 24.0), torch.ones(23)], dim=1)
    folder: Path = tmp_path_factory.mktemp("batches") / "store"
    return FeatureStore.create(folder, rows, rows_per_shard=9)


def numbers(batches: list[Tensor]) -> list[list[int]]:
    return [[int(value) - 1 for value in batch[:, 0]] for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def epochs(batches: ShuffledBatches, n: int) -> list[list[list[int]]]:
    return [numbers(list(batches)) for _ in range(n)]


def test_an_epoch_holds_distinct_rows_in_full_batches(store):
    batches = ShuffledBatches(store, 5, seed=1)
    assert len(batches) == 4
    for epoch in epochs(batches, 3):
        assert [len(batch) for batch in epoch] == [5, 5, 5, 5]
        seen = [row for batch in epoch for row in batch]
        assert len(set(seen)) == 20
        assert set(seen) <= set(range(23))


def test_every_row_comes_in_some_epoch_and_in_a_batch_as_large_as_the_data(store):
    seen = {row for epoch in epochs(ShuffledBatches(store, 5, seed=1), 8) for batch in epoch for row in batch}
    assert seen == set(range(23))
    whole = ShuffledBatches(store, 23, seed=1)
    assert len(whole) == 1
    assert sorted(epochs(whole, 1)[0][0]) == list(range(23))
    assert len(ShuffledBatches(store, 1, seed=0)) == 23


def test_order_follows_from_seed_and_epoch_alone(store):
    torch.manual_seed(3)
    first = epochs(ShuffledBatches(store, 5, seed=1), 3)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    assert epochs(ShuffledBatches(store, 5, seed=1), 3) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert first[0] != first[1] != first[2] != first[0]
    assert epochs(ShuffledBatches(store, 5, seed=2), 1)[0] != first[0]
    later = ShuffledBatches(store, 5, seed=1)
    later.epoch = 2
    assert epochs(later, 1)[0] == first[2]
    rows = [row for batch in first[0] for row in batch]
    assert rows == shuffled(23, 1, 0)[:20].tolist()  # the size of a batch does not change the order


@pytest.mark.parametrize("n_given", [1, 3, 4, 6])
def test_resumes_anywhere(store, n_given):
    batches = ShuffledBatches(store, 5, seed=1)
    expected = epochs(ShuffledBatches(store, 5, seed=1), 4)
    flat = [batch for epoch in expected for batch in epoch]
    given: list[Tensor] = []
    while len(given) < n_given:
        given += itertools.islice(batches, n_given - len(given))
    assert numbers(given) == flat[:n_given]
    state = json.loads(json.dumps(batches.state_dict()))  # plain numbers
    other = ShuffledBatches(store, 5, seed=99)
    other.load_state_dict(state)
    rest = [batch for _ in range(4) for batch in numbers(list(other))]
    assert rest[: 16 - n_given] == flat[n_given:]
    assert len(numbers(list(other))) == 4  # a whole epoch again


def test_the_epoch_rolls_over_before_the_last_batch_is_handed_out(store):
    """A sized iterator is never asked for one more: what stands then must already be the next epoch."""
    batches = ShuffledBatches(store, 5, seed=1)
    iterator = iter(batches)
    positions = []
    for _ in range(4):
        next(iterator)
        positions.append((batches.state_dict()["epoch"], batches.state_dict()["n_given"]))
    assert positions == [(0, 1), (0, 2), (0, 3), (1, 0)]
    assert numbers([next(iter(batches))]) == numbers([next(iter(_at_epoch(store, 1)))])


def _at_epoch(store: FeatureStore, epoch: int) -> ShuffledBatches:
    batches = ShuffledBatches(store, 5, seed=1)
    batches.load_state_dict({**batches.state_dict(), "epoch": epoch, "n_given": 0})
    return batches


@pytest.mark.door
def test_error_texts(store):
    for size, text in (
        (24, "batch_size: got 24; expected at most the number of training rows, 23"),
        (0, "batch_size: got 0; expected an integer at least 1"),
        (2.0, "batch_size: got 2.0; expected an integer at least 1"),
    ):
        with pytest.raises(InputError) as caught:
            ShuffledBatches(store, size, seed=0)
        assert str(caught.value) == text


@pytest.mark.door
def test_the_state_of_other_batches_is_refused(store):
    state = ShuffledBatches(store, 5, seed=0).state_dict()
    with pytest.raises(InputError, match=r"state\['batch_size'\]: got 5; expected that of these batches, 4"):
        ShuffledBatches(store, 4, seed=0).load_state_dict(state)
    with pytest.raises(InputError, match=r"state\['store'\]: got other"):
        ShuffledBatches(store, 5, seed=0).load_state_dict({**state, "store": "other"})


# Stores that are not in memory


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_blocks(monkeypatch)


@pytest.mark.usefixtures("small_blocks")
def test_the_order_goes_by_where_the_store_is_when_it_is_first_needed(store):
    opened, loaded = FeatureStore(store.folder), FeatureStore(store.folder)
    batches = {name: ShuffledBatches(one, 5, seed=1) for name, one in (("blocks", opened), ("rows", loaded))}
    loaded.load()
    for name, expected in (("blocks", block_shuffled), ("rows", shuffled)):
        for epoch in range(2):
            assert flat(epochs(batches[name], 1)[0]) == expected(23, 1, epoch)[:20].tolist()
        assert batches[name].state_dict()["order"] == name
    opened.load()
    assert flat(epochs(batches["blocks"], 1)[0]) == block_shuffled(23, 1, 2)[:20].tolist()  # it stays


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("n_given", [1, 3, 4, 6])
@pytest.mark.parametrize("loaded_before", [False, True])
def test_resumes_in_the_same_order_with_other_memory(store, n_given, loaded_before):
    def opened(loaded: bool) -> FeatureStore:
        one = FeatureStore(store.folder)
        return one.load() if loaded else one

    whole = ShuffledBatches(opened(loaded_before), 5, seed=1)
    flat = [batch for epoch in epochs(whole, 3) for batch in epoch]
    batches, given = ShuffledBatches(opened(loaded_before), 5, seed=1), []
    while len(given) < n_given:
        given += itertools.islice(batches, n_given - len(given))
    assert numbers(given) == flat[:n_given]  # what was read ahead was not given
    state = json.loads(json.dumps(batches.state_dict()))
    other = ShuffledBatches(opened(not loaded_before), 5, seed=99)
    other.load_state_dict(state)
    rest = [batch for _ in range(3) for batch in numbers(list(other))]
    assert rest[: 12 - n_given] == flat[n_given:]


@pytest.mark.usefixtures("small_blocks")
def test_a_state_from_before_there_were_two_orders_means_rows(store):
    batches = ShuffledBatches(FeatureStore(store.folder), 5, seed=1)
    state = batches.state_dict()
    del state["order"]
    batches.load_state_dict(state)
    assert flat(epochs(batches, 1)[0]) == shuffled(23, 1, 0)[:20].tolist()


@pytest.mark.door
def test_an_unknown_order_is_refused(store):
    batches = ShuffledBatches(store, 5, seed=1)
    with pytest.raises(InputError, match=r"state\['order'\]: got random; expected one of 'rows', 'blocks'"):
        batches.load_state_dict({**batches.state_dict(), "order": "random"})


# Batches on a GPU (a stand-in), which are read and copied one ahead


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("n_given", [1, 3, 4, 6])
def test_the_position_is_that_of_the_batch_handed_out(store, monkeypatch, loaded, n_given):
    """A state saved while the next batch is on its way to the GPU loses none and repeats none."""

    def opened() -> FeatureStore:
        one = FeatureStore(store.folder)
        return one.load() if loaded else one

    expected = epochs(ShuffledBatches(opened(), 5, seed=1), 3)
    flat = [batch for epoch in expected for batch in epoch]
    gpu = gpu_streams.install(monkeypatch)
    batches, on_cpu = ShuffledBatches(opened(), 5, seed=1).to(GPU), ShuffledBatches(opened(), 5, seed=1)
    given, left = [], n_given
    while left:
        for batch, same in itertools.islice(zip(batches, on_cpu, strict=False), left):
            assert isinstance(batch, OnGpu)
            given += numbers([batch.values()])
            assert given[-1] == numbers([same])[0]
            assert batches.state_dict() == on_cpu.state_dict()
            left -= 1
    assert sum("copies" in line for line in gpu.log) == n_given + (n_given % 4 > 0)  # one ahead within an epoch
    assert given == flat[:n_given]
    state = json.loads(json.dumps(batches.state_dict()))
    for device in (GPU, torch.device("cpu")):
        other = ShuffledBatches(opened(), 5, seed=99).to(device)
        other.load_state_dict(state)
        rest = [batch for _ in range(3) for batch in other]
        found = numbers([batch.values() if device is GPU else batch for batch in rest])
        assert found[: 12 - n_given] == flat[n_given:]


def test_for_a_gpu_rows_are_read_and_pinned_in_a_thread(store, monkeypatch):
    gpu_streams.install(monkeypatch)
    pin, names = Tensor.pin_memory, []
    monkeypatch.setattr(
        Tensor, "pin_memory", lambda rows: (names.append(threading.current_thread().name), pin(rows))[1]
    )
    loaded = FeatureStore(store.folder).load()
    assert len(list(ShuffledBatches(loaded, 5, seed=1).to(GPU))) == 4
    assert len(names) == 4
    assert all(name.startswith("read_ahead") for name in names)


def test_on_the_cpu_batches_of_a_loaded_store_need_no_thread(store, monkeypatch):
    loaded, names = FeatureStore(store.folder).load(), []
    rows_of = loaded.rows
    monkeypatch.setattr(loaded, "rows", lambda rows: (names.append(threading.current_thread().name), rows_of(rows))[1])
    assert len(list(ShuffledBatches(loaded, 5, seed=1).to(torch.device("cpu")))) == 4
    assert names == [threading.current_thread().name] * 4
