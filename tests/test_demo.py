"""The demo, whole: what it writes, what it prints, and that it can be repeated."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

import monoloss.demo
from monoloss import Evaluation, InputError
from monoloss.demo import LOSSES, VARIANTS, digits_stores, run_demo
from monoloss.report.discovery import find_evaluations, find_stores
from support.reports import page_data

NAMES = [f"{variant}-{loss}" for variant in VARIANTS for loss in LOSSES]
PICTURES = {"score-against-explained-variance.png", *(f"digits-{variant}.png" for variant in VARIANTS)}


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(monoloss.demo, "EPOCHS", 2)


def quiet():
    return Console(file=io.StringIO(), width=80)


def test_folder_holds_what_was_promised(short, tmp_path):
    console = quiet()
    result = run_demo(3, tmp_path / "out", progress=False, console=console)
    assert {path.name for path in (result.folder / "pictures").iterdir()} == PICTURES
    for path in (result.folder / "pictures").iterdir():
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(path.name for path in (result.folder / "evaluations").iterdir()) == sorted(NAMES)
    assert (result.folder / "logs" / "version_0" / "metrics.csv").is_file()
    text = console.file.getvalue()
    page = result.folder / "report" / "index.html"
    assert f"open {page.resolve()}" in text.replace("\n", "")
    data = page_data(page.parent)
    assert [run["name"] for run in data["runs"] if run["baseline"]] == ["topk-baseline", "batch_topk-baseline"]
    assert data["stores"]["store-0"]["cell"] == 64
    assert "training" in {figure["id"] for figure in data["figures"]}
    (store,) = find_stores(find_evaluations([result.folder]))  # though the folder got its name at the end
    assert store.folder.resolve() == (tmp_path / "out" / "stores" / "held-out").resolve()
    assert str((tmp_path / "out").resolve()) in text.replace("\n", "")
    for name in NAMES:
        loaded = Evaluation.load(result.folder / "evaluations" / name)
        assert dict(loaded.summary) == pytest.approx(dict(result.evaluations[name].summary), nan_ok=True)
        assert f"{loaded.summary['score_mean']:.3f}" in text
    assert max(len(line) for line in text.splitlines() if "baseline" in line) <= 80


def test_same_seed_same_measures_and_earlier_folder_is_replaced(short, tmp_path):
    first = run_demo(1, tmp_path / "out", progress=False, console=quiet()).evaluations
    (tmp_path / "out" / "stray.txt").write_text("x", encoding="utf-8")
    again = run_demo(1, tmp_path / "out", progress=False, console=quiet()).evaluations
    other = run_demo(2, tmp_path / "out2", progress=False, console=quiet()).evaluations
    assert not (tmp_path / "out" / "stray.txt").exists()
    for name in NAMES:
        assert torch.equal(first[name].latents["score"].nan_to_num(), again[name].latents["score"].nan_to_num())
    assert first[NAMES[0]].summary["score_mean"] != other[NAMES[0]].summary["score_mean"]


def test_digits_are_split_by_class_and_never_in_both(tmp_path):
    train, held_out = digits_stores(tmp_path, 0)
    assert (train.n_rows, held_out.n_rows) == (1198, 599)
    assert not set(train.ids) & set(held_out.ids)
    shares = [torch.bincount(store.labels(), minlength=10) / store.n_rows for store in (train, held_out)]
    assert (shares[0] - shares[1]).abs().max() < 0.01
    assert held_out.thumbnails(torch.tensor([0])).shape == (1, 8, 8, 1)


def test_threads_are_put_back(short, tmp_path):
    before = torch.get_num_threads()
    with pytest.raises(InputError):
        run_demo(0, __file__, progress=False)
    run_demo(0, tmp_path / "out", progress=False, console=quiet())
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_memory_and_centring_raise_every_figure(tmp_path):
    evaluations = run_demo(0, tmp_path / "out", progress=False, console=quiet()).evaluations
    for variant in VARIANTS:
        base, best = (evaluations[f"{variant}-{loss}"].summary for loss in ("baseline", "memory"))
        for key in ("score_mean", "score_mean_zero_filled", "lift_mean", "purity_weighted"):
            assert best[key] > base[key]
        assert best["n_alive"] >= 0.97 * base["n_alive"]
        assert best["explained_variance"] >= base["explained_variance"] - 0.03
        assert best["l0"] == pytest.approx(8, rel=0.05)
