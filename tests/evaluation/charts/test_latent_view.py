"""A latent as HTML: the numbers of the evaluation, images from wherever they are, any name as text, no scripts."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monoloss.errors import InputError
from monoloss.evaluation.charts.bars import activation_bars, class_bars, latent_measures
from monoloss.evaluation.charts.latent_view import LatentView
from monoloss.evaluation.result import Evaluation
from monoloss.evaluation.similar import similar_latents
from support.charts import HOSTILE, judged, small_store


class _Reader(HTMLParser):
    """What a browser would make of a page: its tags with attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def test_shows_the_rows_of_the_evaluation(evaluation: Evaluation, store) -> None:
    view = evaluation.latent(3, store)
    kinds = [evaluation.examples, evaluation.middle_examples, evaluation.bottom_examples]
    assert list(view.rows) == ["Most active", "Around the median", "Least active"]
    for rows, examples in zip(view.rows.values(), kinds, strict=True):
        assert len(rows) == 3
        assert [(row.row, row.value) for row in rows] == list(
            zip(examples.rows[3].tolist(), examples.values[3].tolist(), strict=True)
        )
        for row in rows:
            assert row.name == f"id {row.row}"
            assert row.labels == [f"class {row.row % 4}"]
            png = base64.b64decode(row.image.address.removeprefix("data:image/png;base64,"))
            assert np.unique(np.asarray(Image.open(io.BytesIO(png)))) == [row.row]
            assert row.image.is_small


def test_shows_measures_histogram_classes_and_similar_latents(evaluation: Evaluation, store) -> None:
    read = _Reader(evaluation.latent(3, store)._repr_html_())
    assert f"{evaluation.latents['score'][3].item():.3f}" in read.text
    assert f"{evaluation.latents['n_eff'][3].item():,.1f}" in read.text
    bars, counts = activation_bars(evaluation, 3), evaluation.histogram[3]
    assert sum(bar.n_rows for bar in bars) == counts.sum()
    heights = [attributes["title"] for tag, attributes in read.tags if tag == "i" and "title" in attributes]
    assert heights == [f"{bar.range_text}: {bar.n_rows:,} rows" for bar in bars]
    for bar in class_bars(evaluation, 3):
        assert f"{bar.name}\n{bar.n_rows}\n" in read.text
    latents, cosines = (part[3] for part in similar_latents(evaluation, 8))
    assert f"{int(latents[0])} ({float(cosines[0]):.2f}), {int(latents[1])} (" in read.text


def test_a_dead_latent_says_so(evaluation: Evaluation, store) -> None:
    latents = {key: column.clone() for key, column in evaluation.latents.items()}
    latents["score"][0], latents["density"][0] = torch.nan, 0.0
    none = [dataclasses.replace(evaluation.examples, rows=torch.full((16, 3), -1))] * 3
    dead = dataclasses.replace(
        evaluation,
        latents=latents,
        examples=none[0],
        middle_examples=none[1],
        bottom_examples=none[2],
        histogram=torch.zeros(16, 80, dtype=torch.int64),
    )
    assert latent_measures(dead, 0)["score"] == "undefined"
    read = _Reader(dead.latent(0, store)._repr_html_())
    assert read.text.count("active on no row") == 3
    assert "Active rows by activation" not in read.text
    assert activation_bars(dead, 0) == []


def test_an_older_evaluation_shows_what_it_has(evaluation: Evaluation, store) -> None:
    older = dataclasses.replace(
        evaluation,
        middle_examples=None,
        bottom_examples=None,
        histogram=None,
        top_classes=None,
        decoder_directions=None,
    )
    view = older.latent(3, store)
    assert list(view.rows) == ["Most active"]
    assert "similar" not in _Reader(view._repr_html_()).text


def test_without_a_store_rows_are_numbers(evaluation: Evaluation) -> None:
    view = evaluation.latent(3)
    read = _Reader(view._repr_html_())
    assert not [tag for tag, _ in read.tags if tag == "img"]
    for row in view.rows["Most active"]:
        assert f"row {row.row}\n" in read.text


def test_without_images_ids_are_shown(folder: Path) -> None:
    bare = small_store(str(folder / "bare"), thumbnails=None, labels=None)
    view = judged(bare).latent(3, str(bare.folder))  # a folder will do
    read = _Reader(view._repr_html_())
    assert f"id {view.rows['Most active'][0].row}\n" in read.text
    assert "by class" not in read.text


def test_images_come_from_a_folder_of_files(folder: Path) -> None:
    names = [f"{row}.png" for row in range(64)]
    for row, name in enumerate(names[:63]):
        Image.new("RGB", (100, 80), (row, 2 * row, 3 * row)).save(folder / name)
    paths = [*names[:63], "../outside.png"]
    outside = small_store(str(folder / "paths"), thumbnails=None, paths=paths)
    found = judged(outside)
    n_images = 0
    for latent in range(16):
        for rows in found.latent(latent, outside, folder).rows.values():
            for row in rows:
                assert (row.image is None) == (row.row == 63)
                if row.image is not None:
                    png = base64.b64decode(row.image.address.removeprefix("data:image/png;base64,"))
                    picture = Image.open(io.BytesIO(png))
                    assert picture.size == (64, 64)
                    assert picture.getpixel((5, 5)) == (row.row, 2 * row.row, 3 * row.row)
                    n_images += 1
    assert n_images > 100


def test_labels_of_rows_with_many(folder: Path) -> None:
    labels = torch.ones(64, 9, dtype=torch.bool)
    labels[:, 0] = False
    many = small_store(str(folder / "many"), labels=labels, class_names=list("abcdefghi"))
    view = judged(many).latent(3, many)
    row = view.rows["Most active"][0]
    assert row.labels == list("bcdefghi")
    assert f"id {row.row}, b, c, d, e, f, …" in [
        attributes.get("title") for _, attributes in _Reader(view._repr_html_()).tags
    ]


@pytest.mark.parametrize("with_images", [True, False])
def test_names_are_text(folder: Path, with_images: bool) -> None:
    encodable = [name.encode("utf-8", "replace").decode() for name in HOSTILE]
    classes = [f"{i}{name}" for i, name in enumerate(encodable)]
    ids = [f"{i}{encodable[i % len(encodable)]}" for i in range(64)]
    more = {} if with_images else {"thumbnails": None}
    hostile = small_store(
        str(folder / f"hostile-{with_images}"),
        ids=ids,
        labels=torch.arange(64) % len(classes),
        class_names=classes,
        **more,
    )
    plain = small_store(str(folder / f"plain-{with_images}"), **more)
    of_hostile, of_plain = judged(hostile), judged(plain)
    for latent, name in enumerate(HOSTILE):
        found = dataclasses.replace(of_hostile, name=name)
        page = found.latent(latent, hostile).save(folder / "page.html").read_text(encoding="utf-8")
        tags = {tag for tag, _ in _Reader(page).tags}
        expected = {tag for tag, _ in _Reader(of_plain.latent(latent, plain)._repr_html_()).tags}
        assert tags == expected | {"html", "head", "meta", "title", "body"}
        assert "script" not in tags
        attributes = {key for _, one in _Reader(page).tags for key in one}
        assert not [key for key in attributes if key.startswith("on") or key == "href"]
        assert not re.findall(r'src="(?!data:image/png;base64,)', page)


def test_repr_is_short(evaluation: Evaluation) -> None:
    assert repr(evaluation.latent(3)).startswith("<latent 3 of 'mine': score ")


@pytest.mark.door
def test_what_cannot_be_shown(evaluation: Evaluation, store, folder: Path) -> None:
    for latent in (-1, 16, 2.0, True):
        with pytest.raises(InputError, match=rf"latent: got {latent}; expected an integer at least 0 and below 16"):
            evaluation.latent(latent)
    other = small_store(str(folder / "other"), ids=[f"other {row}" for row in range(64)])
    with pytest.raises(InputError, match=r"store: got .*other, another store; expected the store that was evaluated"):
        evaluation.latent(0, other)
    with pytest.raises(InputError, match=r"images: got pictures; expected the store too"):
        evaluation.latent(0, images="pictures")
    with pytest.raises(InputError, match=r"absent"):
        evaluation.latent(0, folder / "absent")
    with pytest.raises(InputError, match=r"evaluation: got a int; expected an Evaluation"):
        LatentView(3, 0)
