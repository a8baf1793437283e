"""The most active images of some latents."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest
import torch
from matplotlib.image import AxesImage

from monoloss.errors import InputError
from monoloss.evaluation.examples import Examples
from monoloss.report.pictures.examples_grid import spread_latents, top_examples_grid
from support.figures import NAN, dead, evaluation, texts, thumbnails, tiles


def test_spread_latents_are_the_middles_of_equal_parts_of_the_ranking() -> None:
    scores = torch.linspace(-0.5, 0.9, 12).tolist()
    one = evaluation("one", [NAN, *scores, NAN])  # latent j has rank 12 - j
    assert spread_latents(one, 3) == [10, 6, 2]
    assert spread_latents(one, 1) == [6]
    assert spread_latents(one, 4) == [11, 8, 5, 2]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 11, 40])
@pytest.mark.parametrize("n_defined", [0, 1, 2, 10, 11])
def test_spread_latents_are_distinct_defined_and_evenly_spaced(n: int, n_defined: int) -> None:
    generator = torch.Generator().manual_seed(n_defined)
    scores = torch.full((20,), NAN)
    scores[torch.randperm(20, generator=generator)[:n_defined]] = torch.rand(n_defined, generator=generator)
    chosen = spread_latents(evaluation("one", scores.tolist()), n)
    assert len(chosen) == len(set(chosen)) == min(n, n_defined)
    ranking = sorted((j for j in range(20) if not scores[j].isnan()), key=lambda j: -float(scores[j]))
    ranks = [ranking.index(latent) for latent in chosen]
    steps = [b - a for a, b in itertools.pairwise(ranks)]
    assert ranks == sorted(ranks)
    assert not steps or max(steps) - min(steps) <= 1
    assert not ranks or abs(ranks[0] - (n_defined - 1 - ranks[-1])) <= 1  # as far from the best as from the worst


def test_spread_latents_of_equal_scores_take_the_lower_number_first() -> None:
    assert spread_latents(evaluation("one", [0.5, 0.5, 0.5]), 3) == [0, 1, 2]


def test_grid_shows_the_most_active_images_of_each_latent_in_order() -> None:
    left, right = evaluation("left", [0.1] * 30), evaluation("right", [0.1] * 30)
    figure = top_examples_grid(left, right, thumbnails, lambda rows: thumbnails(rows + 100), [20, 3], [7, 0], 3)
    greys = [grey for _, _, grey in tiles(figure)]
    assert greys == [20, 21, 22, 107, 108, 109, 3, 4, 5, 100, 101, 102]


def test_grid_leaves_tiles_blank_where_a_latent_has_fewer_images() -> None:
    one = evaluation("one", [0.1, 0.2, 0.3])
    rows = torch.tensor([[5, 6, -1, -1], [-1, -1, -1, -1], [1, 2, 3, 4]])
    one = dataclasses.replace(one, examples=Examples(rows, rows.double()))
    other = evaluation("other", [0.1])
    figure = top_examples_grid(one, other, thumbnails, thumbnails, [0, 1, 2], [0], 3)
    greys = [grey for _, _, grey in tiles(figure)]
    assert greys == [5, 6, None, 0, 1, 2, None, None, None, 1, 2, 3]


def test_grid_without_any_image_fetches_none() -> None:
    one = evaluation("one", [NAN, NAN])
    one = dataclasses.replace(one, examples=Examples.none(2, 4))
    figure = top_examples_grid(one, one, thumbnails, thumbnails, [0], [1], 4)
    assert [grey for _, _, grey in tiles(figure)] == [None] * 8


def test_grid_of_a_model_without_a_defined_latent() -> None:
    one, other = dead("dead one"), evaluation("other", [0.5, 0.6])
    figure = top_examples_grid(one, other, thumbnails, thumbnails, spread_latents(one, 2), spread_latents(other, 2), 2)
    assert texts(figure).count("no latent to show") == 1
    assert [grey for _, _, grey in tiles(figure)] == [1, 2, 0, 1]
    top_examples_grid(one, one, thumbnails, thumbnails, [], [], 2)


def test_grid_breaks_many_images_into_lines() -> None:
    rows = torch.arange(20)[None]
    one = dataclasses.replace(evaluation("one", [0.5]), examples=Examples(rows, rows.double()))
    figure = top_examples_grid(one, one, thumbnails, thumbnails, [0], [0], 20)
    places = tiles(figure)
    assert len(places) == 40
    assert len({top for top, _, _ in places}) == 3
    first_half = [grey for _, left, grey in places if left < figure.axes[0].get_xlim()[1] / 2]
    assert first_half == list(range(20))


def test_grid_writes_the_figures_of_each_latent() -> None:
    left, right = evaluation("left", [0.5, 0.75, NAN]), evaluation("right", [0.625, 0.25], labels=False)
    shown = texts(top_examples_grid(left, right, thumbnails, thumbnails, [1, 2], [0], 2))
    at = shown.index("latent 1")
    assert shown[at : at + 3] == ["latent 1", "score 0.75, lift 0.50, purity 0.75:", "dog"]
    assert "score undefined, lift undefined, purity undefined:" in shown
    assert "score 0.62, lift 0.38" in shown
    assert "mean score 0.62, 1 of 3 latents undefined" in shown


def test_grid_says_that_latents_were_spread_only_where_they_were() -> None:
    left, right = evaluation("left", [0.1, 0.5, 0.3]), evaluation("right", [0.7, 0.6, 0.9])

    def note(latents_left: list[int], latents_right: list[int]) -> str:
        figure = top_examples_grid(left, right, thumbnails, thumbnails, latents_left, latents_right, 2)
        return " ".join(" ".join(texts(figure)).split())

    assert "evenly spaced ranks of the score" in note(spread_latents(left, 2), spread_latents(right, 2))
    for picked in ([1], [2, 1]):
        shown = note(picked, spread_latents(right, 2))
        assert "as they were asked for" in shown
        assert "evenly spaced" not in shown


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 5, 9), (4, 9, 5)])
def test_grid_keeps_the_sides_of_an_image_in_proportion(channels: int, height: int, width: int) -> None:
    def images(rows: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(rows), height, width, channels, dtype=torch.uint8)

    one = evaluation("one", [0.1, 0.2])
    figure = top_examples_grid(one, one, images, images, [0], [1], 2)
    for image in figure.findobj(AxesImage):
        left, right, bottom, top = image.get_extent()
        assert (right - left) / (bottom - top) == pytest.approx(width / height)
        assert max(right - left, bottom - top) <= 0.9 + 1e-9


@pytest.mark.door
def test_grid_takes_latents_as_a_tensor() -> None:
    one = evaluation("one", [0.1, 0.2])
    figure = top_examples_grid(one, one, thumbnails, thumbnails, torch.tensor([1]), [0], 2)
    assert "latent 1" in texts(figure)


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
