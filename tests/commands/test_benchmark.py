"""``monoloss benchmark`` in-process, tiny: what it prints and writes, what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

import monoloss.benchmark.run as benchmark
from monoloss.benchmark.run import OURS, OVER_PAIRS, PAIRWISE, PICTURE, PRODUCT, RESULT, TWO_PASS, Sizes, Ways
from monoloss.cli import main

TINY = {"width": 8, "n_latents": 32, "k": 2, "batch_size": 20, "max_rows": 150, "pairwise_rows": 64, "rounds": 2}


def run(tmp_path, capsys, **more):
    options = {**TINY, "out": tmp_path / "out", "progress": "false", **more}
    argv = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    code = main(["benchmark", *argv])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def test_table_file_and_picture(tmp_path, capsys):
    code, out, err = run(tmp_path, capsys)
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [RESULT, PICTURE]
    assert (tmp_path / "out" / PICTURE).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    result = json.loads((tmp_path / "out" / RESULT).read_text())
    assert result["sizes"] == {**TINY, "seed": 0}
    assert result["about"]["threads"] == torch.get_num_threads()
    assert 0 <= result["largest_difference"] <= 1e-4
    for name in (PAIRWISE, PRODUCT):
        assert list(result["ways"][name]["measured"]) == ["16", "32", "64"]
        assert list(result["ways"][name]["extrapolated"]) == ["128", "150"]
    for name in (TWO_PASS, OURS):
        assert list(result["ways"][name]["measured"]) == ["16", "32", "64", "128", "150"]
        assert result["ways"][name]["extrapolated"] == {}
        assert all(each["runs"] == 2 for each in result["ways"][name]["measured"].values())
    rows = {
        words[0]: words[1:]
        for line in out.splitlines()
        if (words := line.split()) and words[0].isdigit() and "x" in words
    }
    assert list(rows) == ["16", "32", "64", "128", "150"]
    for n in ("16", "32", "64"):
        assert "~" not in " ".join(rows[n])
    for n in ("128", "150"):  # both ways over pairs are marked, the others are not
        assert [word[0] for word in rows[n] if word.startswith("~")] == ["~", "~"]
    assert "~ not measured" in " ".join(out.split())
    assert max(map(len, out.split("Picture")[0].splitlines())) <= 80


def test_extrapolated_times_are_the_quadratic_of_the_measured_ones(tmp_path, capsys):
    run(tmp_path, capsys)
    result = json.loads((tmp_path / "out" / RESULT).read_text())
    for name in OVER_PAIRS:
        fit = result["quadratic_fits"][name]
        for n, found in result["ways"][name]["extrapolated"].items():
            assert found["seconds"] == pytest.approx(fit["square"] * int(n) ** 2 + fit["linear"] * int(n))


def test_nothing_is_extrapolated_where_all_is_measured(tmp_path, capsys):
    code, out, _ = run(tmp_path, capsys, max_rows=64)
    assert code == 0
    assert "~" not in out
    result = json.loads((tmp_path / "out" / RESULT).read_text())
    assert not any(way["extrapolated"] for way in result["ways"].values())


def test_an_earlier_benchmark_is_replaced(tmp_path, capsys):
    run(tmp_path, capsys)
    (tmp_path / "out" / "stray.txt").write_text("x")
    assert run(tmp_path, capsys, seed=1)[0] == 0
    assert not (tmp_path / "out" / "stray.txt").exists()
    assert json.loads((tmp_path / "out" / RESULT).read_text())["sizes"]["seed"] == 1


def test_progress_is_shown(tmp_path, capsys):
    code, _, err = run(tmp_path, capsys, progress="true", rounds=1)
    assert code == 0
    assert "measuring" in err
    assert "runs; last: " in err


@pytest.mark.door
@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("k", 33, ["k", "33", "at most n_latents, 32"]),
        ("k", 0, ["k", "at least 1"]),
        ("width", 1, ["width", "at least 2"]),
        ("n_latents", -5, ["n_latents", "-5"]),
        ("batch_size", 0, ["batch_size", "at least 1"]),
        ("max_rows", 63, ["max_rows", "63", "at least 64"]),
        ("pairwise_rows", 4, ["pairwise_rows", "at least 16"]),
        ("rounds", 0, ["rounds", "at least 1"]),
        ("seed", -1, ["seed", "at least 0"]),
        ("seed", 2**32, ["seed", "below 4294967296"]),
    ],
)
def test_unusable_sizes_are_one_sentence(tmp_path, capsys, option, value, words):
    code, out, err = run(tmp_path, capsys, **{option: value})
    assert code == 2
    assert not out
    assert err.startswith("monoloss: ")
    assert len(err.strip().splitlines()) == 1
    for word in ("got", "expected", *words):
        assert word in err
    assert not list(tmp_path.iterdir())


@pytest.mark.door
def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    code, _, err = run(tmp_path, capsys)
    assert code == 2
    assert "an earlier benchmark's" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def nearly(scores):
    return lambda *args: scores(*args) + 1e-3


def undefined(scores):
    return lambda *args: scores(*args) * torch.nan


@pytest.mark.parametrize("fault", [nearly, undefined])
@pytest.mark.parametrize("name", ["pairwise_score", "pairwise_score_as_product", "two_pass_score"])
def test_ways_that_disagree_are_not_timed(monkeypatch, tmp_path, capsys, name, fault):
    monkeypatch.setattr(benchmark, name, fault(getattr(benchmark, name)))
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("timed"))
    with pytest.raises(RuntimeError, match="differ"):
        run(tmp_path, capsys)
    assert not list(tmp_path.iterdir())


def test_codes_that_differ_are_not_timed(monkeypatch, tmp_path, capsys):
    right = benchmark.DenseSae._largest
    monkeypatch.setattr(benchmark.DenseSae, "_largest", lambda self, pre: right(self, pre) * 1.01)
    with pytest.raises(RuntimeError, match="entries"):
        run(tmp_path, capsys)


def test_each_way_gives_the_same_scores_from_the_rows():
    sizes = Sizes(**TINY)
    rows = benchmark.random_rows(64, 8, 0)
    with torch.no_grad():
        found = {name: way().double() for name, way in Ways(sizes).runs(rows).items()}
    assert found[OURS].isfinite().sum() > 10
    for scores in found.values():
        torch.testing.assert_close(scores, found[OURS], rtol=0, atol=1e-4, equal_nan=True)


def test_rows_double_up_to_the_last():
    assert Sizes().rows == (512, 1024, 2048, 4096, 8192, 16384)
    assert Sizes(pairwise_rows=16, max_rows=33).rows == (4, 8, 16, 32, 33)
    assert Sizes(pairwise_rows=16, max_rows=16).rows == (4, 8, 16)
