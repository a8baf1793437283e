"""CIFAR's official files: here small ones of the same form, under their own checksums."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from monoloss.data.encoders import load_encoder
from monoloss.data.extraction.run import Extraction
from monoloss.data.images import open_images
from monoloss.data.images.open import decode_image
from monoloss.errors import InputError
from monoloss.finetune.images.join import join_rows
from monoloss.finetune.images.labelled import LabelledImages

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 2]


def written(path: Path, content: dict[str, object]) -> list[str]:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return [path.name, hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()]


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / CIFAR10.base_folder
    parts = [slice(0, 2), slice(2, 4)]
    train = [
        written(folder / f"data_batch_{i}", {"data": PIXELS[part].reshape(2, -1), "labels": LABELS[part]})
        for i, part in enumerate(parts)
    ]
    test = [written(folder / "test_batch", {"data": PIXELS[4:].reshape(1, -1), "labels": LABELS[4:]})]
    meta = written(folder / "batches.meta", {"label_names": ["plane", "car", "bird"]})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return tmp_path


def test_images_are_those_of_the_files(cifar10: Path) -> None:
    source = open_images(f"cifar10:{cifar10}", split="train")
    images = list(source.images())
    assert [image.id for image in images] == ["train/0", "train/1", "train/2", "train/3"]
    assert [image.label for image in images] == LABELS[:4]
    assert source.class_names == ["plane", "car", "bird"]
    assert (source.n_images, source.labels, source.image_root) == (4, "single", None)
    for image, pixels in zip(images, PIXELS[:4], strict=True):
        np.testing.assert_array_equal(np.asarray(decode_image(image.content)), pixels.transpose(1, 2, 0))
    assert [image.position for image in source.images(1, 3)] == [1, 2]
    assert [image.id for image in open_images(f"cifar10:{cifar10}", split="test").images()] == ["test/0"]


def test_embeddings_are_extracted_and_joined(cifar10: Path, tmp_path: Path) -> None:
    source = open_images(f"cifar10:{cifar10}", split="train")
    encoder = load_encoder("resnet10t", pretrained=False, image_size=32)
    store = Extraction(source, encoder, str(tmp_path / "store"), workers=0, progress=False).run()
    assert list(store.ids) == ["train/0", "train/1", "train/2", "train/3"]
    assert store.labels().tolist() == LABELS[:4]
    images = LabelledImages(source)
    assert images.labels.tolist() == LABELS[:4]
    assert join_rows(images, store).rows.tolist() == [0, 1, 2, 3]


def test_cifar100_has_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / CIFAR100.base_folder
    content = {"data": PIXELS.reshape(5, -1), "fine_labels": LABELS, "coarse_labels": [0] * 5}
    file = written(folder / "train", content)
    meta = written(folder / "meta", {"fine_label_names": ["apple", "bear", "cup"], "coarse_label_names": ["thing"]})
    monkeypatch.setattr(CIFAR100, "train_list", [file])
    monkeypatch.setattr(CIFAR100, "test_list", [file])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": meta[0], "key": "fine_label_names", "md5": meta[1]})
    source = open_images(f"cifar100:{tmp_path}", split="test")
    assert [image.label for image in source.images()] == LABELS
    assert source.class_names == ["apple", "bear", "cup"]


@pytest.mark.door
def test_a_changed_file_is_not_unpickled(cifar10: Path) -> None:
    file = cifar10 / CIFAR10.base_folder / "test_batch"
    file.write_bytes(b"c" + file.read_bytes())
    with pytest.raises(InputError) as error:
        open_images(f"cifar10:{cifar10}", split="train")
    assert str(error.value) == (
        f"cifar10:{cifar10}: got files that are missing or are not the official ones; expected the folder that holds "
        "cifar-10-batches-py, unpacked from cifar-10-python.tar.gz"
    )


@pytest.mark.door
def test_a_split_is_chosen(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split: got None; expected one of the splits of cifar10: train, test"):
        open_images(f"cifar10:{tmp_path}")
    with pytest.raises(InputError, match="cifar100 has no columns"):
        open_images(f"cifar100:{tmp_path}", split="train", label_column="")
