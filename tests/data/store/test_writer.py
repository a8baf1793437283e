"""What is refused before anything is written, and writing that is interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monoloss.data.store import FeatureStore
from monoloss.data.store.format import MANIFEST, SkippedFile
from monoloss.data.store.writer import FeatureStoreWriter
from monoloss.errors import InputError
from support.stores import everything_in, rows_of, stop_at_call

BAD: list[tuple[dict[str, Any], str]] = [
    ({"embeddings": torch.ones(3, 2, dtype=torch.uint8)}, "scale: got None; expected a number for dtype 'uint8'"),
    ({"embeddings": np.array([["a", "b"]])}, "embeddings: got dtype <U1"),
    ({"embeddings": [[1.0, 2.0]]}, "embeddings: got list; expected a torch tensor or a NumPy array"),
    ({"embeddings": torch.ones(3)}, r"embeddings: got shape \(3,\); expected \(rows, width\)"),
    ({"embeddings": torch.ones(0, 3)}, r"embeddings: got shape \(0, 3\)"),
    ({"embeddings": torch.ones(3, 0)}, r"embeddings: got shape \(3, 0\)"),
    ({"scale": 0.1}, "scale: got 0.1; expected None for dtype 'float32'; only 'uint8' has a scale"),
    ({"dtype": "uint8", "scale": 0.0}, "scale: got 0.0; expected a number above 0"),
    ({"dtype": "uint8", "scale": float("inf")}, "scale: got inf; expected a number above 0"),
    ({"dtype": "float8"}, "dtype: got 'float8'; expected one of 'float16', 'bfloat16', 'float32', 'uint8'"),
    ({"rows_per_shard": 0}, "rows_per_shard: got 0; expected an integer at least 1"),
    ({"class_names": ["a"]}, "class_names: got names without labels"),
    ({"labels": torch.zeros(10, dtype=torch.int64), "class_names": []}, r"class_names: got \[\]"),
    ({"encoder": {"name": "vit"}}, r"encoder: got the keys \['name'\]; expected name, weights and preprocessing"),
    ({"encoder": {"name": 1, "weights": {1}, "preprocessing": 0}}, "encoder: got Object of type set"),
]


@pytest.mark.door
@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_named_and_nothing_is_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"embeddings": rows_of(10), "rows_per_shard": 4, **change}
    with pytest.raises(InputError, match=message):
        FeatureStore.create(tmp_path / "new" / "store", **arguments)
    assert everything_in(tmp_path) == []


@pytest.mark.door
def test_a_folder_that_is_not_empty_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    before = everything_in(tmp_path)
    for write in (lambda: FeatureStore.create(store.folder, rows_of(2)), lambda: FeatureStoreWriter(store.folder)):
        with pytest.raises(
            InputError, match="store: got a folder that is not empty; expected a folder that is empty or"
        ):
            write()
    assert everything_in(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert len(FeatureStore.create(tmp_path / "empty", rows_of(2))) == 2


@pytest.mark.door
def test_a_writer_that_fails_leaves_an_unfinished_folder_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, ids = rows_of(10), [f"image {i}" for i in range(10)]

    def write(folder: Path, *, resume: bool) -> None:
        writer = FeatureStoreWriter(folder, rows_per_shard=3, resume=resume)
        for index in range(4):
            if index not in writer.written:
                part = slice(3 * index, 3 * index + 3)
                writer.write_shard(index, rows[part], ids[part])
        writer.finish(n_shards=4)

    write(tmp_path / "whole", resume=False)
    stop_at_call(monkeypatch, 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "resumed", resume=True)
    lines = "shard-00001.jsonl"  # harmless: written again with its shard
    assert everything_in(tmp_path / "resumed") == ["shard-00000.jsonl", "shard-00000.safetensors", lines]
    with pytest.raises(
        InputError, match=r"resumed: got a folder without manifest\.json; expected a store that has been"
    ):
        FeatureStore(tmp_path / "resumed")
    (tmp_path / "resumed" / ".shard-00001.safetensors.0123abcd.tmp").mkdir()  # what a kill would leave
    write(tmp_path / "resumed", resume=True)
    assert everything_in(tmp_path / "resumed") == everything_in(tmp_path / "whole")
    for name in everything_in(tmp_path / "whole"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(InputError, match="resumed: got a finished store; expected an unfinished store to resume"):
        write(tmp_path / "resumed", resume=True)


def test_shards_come_in_any_order_from_several_writers(tmp_path: Path) -> None:
    rows, labels, ids = rows_of(10), torch.arange(10), [str(i) for i in range(10)]
    ranks = [FeatureStoreWriter(tmp_path / "s", rows_per_shard=3, resume=True) for _ in range(2)]
    for index in (3, 1, 0, 2):
        part = slice(3 * index, 3 * index + 3)
        ranks[index % 2].write_shard(index, rows[part], ids[part], labels[part])
    ranks[1].finish()
    whole = FeatureStore.create(tmp_path / "whole", rows, labels, ids, rows_per_shard=3)
    for name in everything_in(tmp_path / "whole"):
        assert (tmp_path / "s" / name).read_bytes() == (whole.folder / name).read_bytes()


def test_skipped_files_and_a_shard_without_rows(tmp_path: Path) -> None:
    writer = FeatureStoreWriter(tmp_path / "s", rows_per_shard=2, image_root="root")
    none = torch.zeros(0, dtype=torch.int64)
    bad = [
        SkippedFile(0, "a.png", "truncated"),
        SkippedFile(1, "b\n.png", "no image"),
        SkippedFile(3, "d.png", "empty"),
    ]
    writer.write_shard(0, torch.empty(0, 5), [], none, skipped=bad[:2])
    writer.write_shard(1, rows_of(1), ["c"], torch.tensor([4]), paths=["c.png"], skipped=bad[2:])
    writer.write_shard(2, rows_of(2, seed=1), ["e", "f"], torch.tensor([1, 0]))
    writer.finish()
    store = FeatureStore(tmp_path / "s")
    assert store.ids == ["c", "e", "f"]
    assert store.paths == ["c.png", None, None]
    assert store.skipped == bad
    assert store.manifest.n_skipped == 3
    assert store.shard_offsets == [0, 0, 1, 3]
    assert store.rows(torch.tensor([2, 0])).tolist() == torch.cat([rows_of(2, seed=1)[1:], rows_of(1)]).tolist()
    assert [batch.start for batch in store.batches(5)] == [0, 1]
    assert store.labels().tolist() == [4, 1, 0]
    assert store.n_classes == 5
    assert torch.equal(store.load().embeddings(), torch.cat([rows_of(1), rows_of(2, seed=1)]))


@pytest.mark.door
def test_shards_that_do_not_fit_together(tmp_path: Path) -> None:
    writer = FeatureStoreWriter(tmp_path / "s", rows_per_shard=2)
    writer.write_shard(0, rows_of(2), ["a", "b"])
    with pytest.raises(InputError, match="shard 1: got width 4; expected 5, as in shard 0"):
        writer.write_shard(1, rows_of(2, 4), ["c", "d"])
    with pytest.raises(InputError, match="shard 1: got labels 'single'; expected None, as in shard 0"):
        writer.write_shard(1, rows_of(2), ["c", "d"], torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"index: got 0, which is written already in .*s, by another process or"):
        writer.write_shard(0, rows_of(2), ["c", "d"])
    with pytest.raises(
        InputError, match=r"embeddings: got shape \(3, 5\); expected \(rows, width\) with at most 2 rows"
    ):
        writer.write_shard(1, rows_of(3), ["c", "d", "e"])
    assert writer.written == [0]
    writer.write_shard(2, rows_of(2), ["e", "a"])
    with pytest.raises(InputError, match=r"shard-00001\.safetensors: got no such shard; expected shards 0 to 2"):
        writer.finish()
    with pytest.raises(InputError, match=r"shard-00003\.safetensors: got no such shard|shard-00001"):
        writer.finish(n_shards=4)
    writer.write_shard(1, rows_of(2), ["c", "d"])
    with pytest.raises(InputError, match=r"shard-00002\.safetensors: got a shard too many; expected shards 0 to 1"):
        writer.finish(n_shards=2)
    with pytest.raises(InputError, match=r"ids: got 'a' twice \(shards 0 and 2\); expected an id of its own"):
        writer.finish()
    assert not (tmp_path / "s" / MANIFEST).exists()


@pytest.mark.door
def test_resuming_with_other_arguments_or_in_a_strange_folder(tmp_path: Path) -> None:
    FeatureStoreWriter(tmp_path / "s", dtype="float16").write_shard(0, rows_of(2), ["a", "b"])
    with pytest.raises(
        InputError, match=r"shard-00000\.safetensors: got a shard with dtype 'float16'; expected 'float32'"
    ):
        FeatureStoreWriter(tmp_path / "s", resume=True)
    (tmp_path / "s" / "letter.txt").write_text("dear ...")
    with pytest.raises(InputError, match=r"letter\.txt: got a file that is no part of a store"):
        FeatureStoreWriter(tmp_path / "s", dtype="float16", resume=True)


@pytest.mark.door
def test_a_store_needs_rows(tmp_path: Path) -> None:
    writer = FeatureStoreWriter(tmp_path / "s")
    with pytest.raises(InputError, match="got no such shard; expected shards 0 to 0"):
        writer.finish()
    writer.write_shard(0, torch.empty(0, 5), [])
    with pytest.raises(InputError, match="got a store without rows; expected at least one row; delete the"):
        writer.finish()
