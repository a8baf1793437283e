"""Images and stores of a run: joined, or refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monoloss.data.store import FeatureStore
from monoloss.errors import InputError
from monoloss.finetune.config import DataConfig
from monoloss.finetune.run import open_data
from support.image_folders import labelled, picture_folder, store_of


def test_train_and_validation(tmp_path: Path) -> None:
    train = labelled(picture_folder(tmp_path / "images/train"))
    held_out = labelled(picture_folder(tmp_path / "images/val", 2, ("cat", "bee")))
    store_of(tmp_path / "one", train)
    store_of(tmp_path / "two", held_out)
    config = DataConfig(
        f"imagefolder:{tmp_path}/images",
        split="train",
        validation_split="val",
        embeddings=str(tmp_path / "one"),
        validation_embeddings=str(tmp_path / "two"),
    )
    data = open_data(config)
    assert (len(data.train), len(data.validation), data.width) == (12, 4, 5)
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.validation.images.labels.tolist() == [1, 1, 2, 2]
    assert data.train.ids == list(train.ids)
    assert data.train.store.mean.shape == (5,)


def test_one_store_for_both(tmp_path: Path) -> None:
    """As extracted from a folder that holds both; the names are unique."""
    train = labelled(picture_folder(tmp_path / "train"))
    store = store_of(tmp_path / "store", train)
    config = DataConfig(f"imagefolder:{tmp_path}/train", validation=f"imagefolder:{tmp_path}/train/")
    data = open_data(config)
    assert data.train.store is None
    assert data.width is None
    assert data.train.fingerprint != store.fingerprint


def test_the_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    images = labelled(picture_folder(tmp_path / "images"))
    store_of(tmp_path / "one", images)
    FeatureStore.create(tmp_path / "two", torch.randn(12, 5), ids=images.ids)
    spec = f"imagefolder:{tmp_path}/images"
    configs = [DataConfig(spec), *(DataConfig(spec, embeddings=str(tmp_path / name)) for name in ("one", "two"))]
    prints = [open_data(config).train.fingerprint for config in configs]
    assert len(set(prints)) == 3
    assert open_data(configs[1]).train.fingerprint == prints[1]


@pytest.mark.door
def test_stores_that_do_not_fit(tmp_path: Path) -> None:
    spec = f"imagefolder:{picture_folder(tmp_path / 'images')}"
    images = labelled(tmp_path / "images")
    one, narrow = str(tmp_path / "one"), str(tmp_path / "narrow")
    store_of(Path(one), images)
    FeatureStore.create(narrow, torch.randn(12, 4), ids=images.ids)
    with pytest.raises(InputError) as error:
        open_data(DataConfig(spec, validation=spec, embeddings=one, validation_embeddings=narrow))
    assert str(error.value) == (
        f"data.validation_embeddings: got {narrow}, with rows of 4 numbers; "
        "expected rows of the same encoder as those to train on, of 5"
    )
    FeatureStore.create(tmp_path / "val", torch.randn(1, 5), ids=["ant/other.png"])
    with pytest.raises(InputError, match=r"^data\.embeddings: got .* a store of other images"):
        open_data(DataConfig(spec, embeddings=str(tmp_path / "val")))
    with pytest.raises(InputError, match=r"^data\.validation_embeddings: got .* a store of other images"):
        open_data(DataConfig(spec, validation=spec, validation_embeddings=str(tmp_path / "val")))
