"""What no figure can be made of, and is refused."""

from __future__ import annotations

import dataclasses
import re

import pytest
from matplotlib.figure import Figure

from monoloss.errors import InputError
from monoloss.report.pictures.drawing import save_figure
from monoloss.report.pictures.examples_grid import spread_latents, top_examples_grid
from monoloss.report.pictures.trade_off import trade_off
from support.figures import evaluation, thumbnails


@pytest.mark.door
def test_no_evaluations() -> None:
    for nothing in ({}, {"TopK": []}):
        with pytest.raises(InputError, match=r"^groups: got no evaluations; expected at least one$"):
            trade_off(nothing)


@pytest.mark.door
def test_evaluations_that_lack_the_measure() -> None:
    bare = dataclasses.replace(evaluation("one", [0.5]), summary={"score_mean": 0.5, "chance": 0.1})
    expected = "groups: got evaluations without explained_variance; expected models that reconstruct their inputs"
    with pytest.raises(InputError, match=f"^{expected}$"):
        trade_off({"TopK": [bare]})


@pytest.mark.door
@pytest.mark.parametrize("n", [0, -1, 1.5, True, "two"])
def test_numbers_of_latents_and_images_that_are_none(n: object) -> None:
    one = evaluation("one", [0.5])
    with pytest.raises(InputError, match=f"^n: got {n!r}; expected an integer at least 1$"):
        spread_latents(one, n)
    with pytest.raises(InputError, match=f"^n: got {n!r}; expected an integer at least 1$"):
        top_examples_grid(one, one, thumbnails, thumbnails, [0], [0], n)


@pytest.mark.door
def test_grid_of_what_is_not_there() -> None:
    one = evaluation("one", [0.5, 0.6])
    for latents, text in (
        (([0], [2]), "latents_right: got latent 2; expected numbers from 0 to 1"),
        (([-1], [0]), "latents_left: got latent -1; expected numbers from 0 to 1"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
            top_examples_grid(one, one, thumbnails, thumbnails, *latents, 2)
    text = "n: got 5; expected at most the 4 examples of a latent in left ('one')"
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        top_examples_grid(one, one, thumbnails, thumbnails, [0], [0], 5)


@pytest.mark.door
@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows: thumbnails(rows).float(),
        lambda rows: thumbnails(rows)[1:],
        lambda rows: thumbnails(rows)[..., 0],
        lambda rows: thumbnails(rows).expand(-1, 8, 8, 2),
    ],
)
def test_thumbnails_that_are_no_images(wrong) -> None:
    one = evaluation("one", [0.5, 0.6])
    with pytest.raises(
        InputError, match=r"^thumbnails_right: got torch\.\w+ of shape .* for 2 rows; expected torch\.uint8"
    ):
        top_examples_grid(one, one, thumbnails, wrong, [0], [0], 2)


@pytest.mark.door
def test_save_under_another_ending(tmp_path) -> None:
    with pytest.raises(InputError, match=r"^path: got '.*figure\.pdf'; expected a name that ends in \.png$"):
        save_figure(Figure(), tmp_path / "figure.pdf")
    assert list(tmp_path.iterdir()) == []
