"""Score against explained variance."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from monoloss.errors import InputError
from monoloss.report.pictures.trade_off import trade_off
from support.figures import dead, evaluation, groups, texts, with_gid


def test_trade_off_draws_each_evaluation_where_its_figures_are() -> None:
    figure = trade_off(groups())
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in with_gid(figure, "point")]
    expected = [(e.summary["explained_variance"], e.summary["score_mean"]) for es in groups().values() for e in es]
    assert points == expected


def test_trade_off_names_variants_and_groups_and_links_them_to_their_baseline() -> None:
    figure = trade_off(groups())
    shown = texts(figure)
    assert [shown.count(name) for name in ("baseline", "memory", "paper")] == [2, 2, 1]
    assert [entry.get_text() for entry in with_gid(figure, "legend")] == ["TopK", "BatchTopK"]
    arrows = [(note.xyann, note.xy) for note in figure.axes[0].texts if note.arrow_patch is not None]
    drawn = [[(e.summary["explained_variance"], e.summary["score_mean"]) for e in es] for es in groups().values()]
    assert arrows == [(start, end) for start, *ends in drawn for end in ends]
    markers = [line.get_marker() for line in with_gid(figure, "point")]
    assert len(set(markers[:2])) == len(set(markers[2:])) == 1
    assert markers[0] != markers[2]


def test_trade_off_labels_do_not_overlap() -> None:
    close = [evaluation(f"variant number {i}", [0.4 + 0.003 * i], shift=0.002 * i) for i in range(4)]
    figure = trade_off({"close": close, **groups()})
    labels = [text for text in figure.axes[0].texts if text.get_text() and text.get_size() < 10]
    assert len(labels) == 9
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    room = figure.axes[0].bbox
    assert all(room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1 for box in boxes)


def test_trade_off_says_what_it_cannot_draw() -> None:
    no_decoder = evaluation("no decoder", [0.5])
    no_decoder = dataclasses.replace(no_decoder, summary={"score_mean": 0.5, "chance": 0.1})
    figure = trade_off({"TopK": [dead("all dead"), evaluation("good", [0.5]), no_decoder]})
    assert len(with_gid(figure, "point")) == 1
    note = " ".join(" ".join(texts(figure)).split())
    assert "without a defined score or reconstruction: all dead, no decoder." in note


def test_trade_off_with_nothing_to_draw() -> None:
    assert "nothing to draw" in texts(trade_off({"TopK": [dead()]}))


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
