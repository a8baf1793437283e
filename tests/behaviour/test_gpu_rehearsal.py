"""`benchmarks/gpu.py` without a GPU: its rehearsal, and how it tells of failures; what it checks it can see."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from monoloss.files.json import read_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# As on a machine with a GPU: neither our package nor what its command line needs is installed
BARE = """
import runpy, sys
from pathlib import Path

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"docstring_parser", "jsonargparse"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.path[:] = [folder for folder in sys.path if not (Path(folder) / "monoloss").is_dir()]
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("gpu")


@pytest.fixture
def bench(gpu):
    return gpu.Bench(torch.device("cpu"), gpu.REHEARSAL)


def numbers(value):
    """Every number in a line, however deep."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers(each)
    elif isinstance(value, int | float):
        yield value


def printed(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_a_rehearsal_measures_everything(tmp_path, gpu):
    """Two minutes, as it is claimed, are the limit."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-c", BARE, str(BENCHMARKS / "gpu.py"), "--rehearse", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    machine, *lines = printed(run.stdout)
    assert machine["part"] == "machine"
    assert machine["torch"] == torch.__version__
    assert list(dict.fromkeys(line["part"] for line in lines)) == list(gpu.PARTS)
    assert not [line for line in lines if gpu.has_error(line) or "skipped" in json.dumps(line)]
    assert all(math.isfinite(number) for line in lines for number in numbers(line))
    found = {part: {each["case"]: each for each in lines if each["part"] == part} for part in gpu.PARTS}
    check_correctness(found["correctness"])
    check_times(found, gpu.REHEARSAL)
    check_waits_and_memory(found)
    stored = read_json(out, format_version=1)
    assert stored["rehearsal"] is True
    assert {part: list(cases) for part, cases in stored["parts"].items()} == {
        part: list(cases) for part, cases in found.items()
    }


def check_correctness(cases):
    for name in ("topk", "batch_topk", "jump_relu", "vanilla", "vanilla, sparse"):
        pairs = cases[f"{name}: step"]["difference_and_bound"]
        assert {"loss", "gradient of encoder_weight", "autocast, loss, from float32"} <= set(pairs)
        assert cases[f"{name}: encode"]["difference_and_bound"]["active on one device only"] == [0, 0]
    products = cases["products"]["difference_and_bound"].values()
    assert all(0 < difference <= bound for difference, bound in products)  # against float64: never equal


def check_times(found, sizes):
    for part in ("score", "step", "products"):
        for case in found[part].values():
            assert len(case["times"]) >= 3
            assert all(each["median_s"] > 0 for each in case["times"].values() if isinstance(each, dict))
    score = found["score"][f"{sizes.score_rows} rows"]
    assert 0 < score["largest_difference"] <= 1e-4
    n = sizes.step_batches[0]
    for kind in ("topk", "batch_topk", "jump_relu", "vanilla, sparse"):
        step = found["step"][f"{kind}, batch {n}"]
        assert step["codes"] == "sparse"
        assert abs(step["l0"] / sizes.k - 1) < 0.2
        assert all(0 <= difference < 1e-3 for difference in step["relative_differences"].values())
    assert found["step"][f"vanilla, batch {n}"]["l0"] > 0.4 * sizes.n_latents
    for case in found["products"].values():
        assert all("share" in each for each in case["dense_is_faster_from_share"].values())
        assert len(case["dense_is_faster_from_share"]) == 3


def check_waits_and_memory(found):
    for case in found["waits"].values():
        assert case["step_s"] > 0
        assert len(case["top_kernels"]) == 10
        assert case["top_kernels"][0]["ms"] > 0
        assert not any(case["waits_in_runtime"].values())  # there is no GPU to wait for
    for case in found["memory"].values():
        assert all(peak > 0 for peak in case["peak_mb"].values())


def test_without_a_gpu_it_says_so(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "torch finds no GPU with CUDA here; --rehearse runs everything small on the CPU\n"


def test_unknown_parts_are_refused(gpu, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--rehearse", "--parts", "score,steps"])
    assert stop.value.code == 2
    assert "no part 'steps': there are correctness, score, step" in capsys.readouterr().err


def test_failures_are_told_and_the_rest_still_runs(gpu, monkeypatch, capsys, tmp_path):
    out, seen = tmp_path / "new" / "gpu.json", []

    def remembers(_deadline):
        """A case that sees which cases the file holds before it."""
        seen.append({part: list(cases) for part, cases in read_json(out, format_version=1)["parts"].items()})
        return {"figure": 1.5}

    def fails(_deadline):
        raise ValueError("two\nlines")

    def too_large(_deadline):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def has_no_parts(_bench):
        raise RuntimeError("not even a list")

    parts = {
        "correctness": lambda _bench: {"fails": fails, "infinite": lambda _deadline: {"figure": math.inf}},
        "score": has_no_parts,
        "step": lambda _bench: {"remembers": remembers, "too large": too_large},
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main(["--rehearse", "--out", str(out)]) == 1
    lines = printed(capsys.readouterr().out)
    for line in lines:
        line.pop("took_s", None)
    assert "not JSON compliant" in lines[2].pop("error")
    assert lines[1:] == [
        {"part": "correctness", "case": "fails", "error": "ValueError: two lines"},
        {"part": "correctness", "case": "infinite"},
        {"part": "score", "case": "all", "error": "RuntimeError: not even a list"},
        {"part": "step", "case": "remembers", "figure": 1.5},
        {"part": "step", "case": "too large", "out_of_memory": True},
    ]
    assert seen == [{"correctness": ["fails", "infinite"], "score": ["all"]}]
    monkeypatch.setattr(gpu, "PARTS", {"step": parts["step"]})
    assert gpu.main(["--rehearse", "--out", str(out)]) == 0  # memory that is too small is a result


def test_no_case_begins_after_the_end(gpu, bench, monkeypatch):
    monkeypatch.setattr(gpu, "PARTS", {"score": lambda _bench: {"one": lambda _deadline: pytest.fail("it began")}})
    assert dict(gpu.lines_of("score", bench, -math.inf)) == {"one": {"skipped": "no time was left"}}


def test_a_rehearsal_writes_only_where_it_is_told(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PARTS", {"score": lambda _bench: {"one": lambda _deadline: {}}})
    monkeypatch.setattr(gpu, "write_json", lambda *_, **__: pytest.fail("it wrote"))
    assert gpu.main(["--rehearse"]) == 0
    assert len(printed(capsys.readouterr().out)) == 2


def test_opponents_that_fail_do_not_stop_the_others(bench):
    def too_large():
        raise torch.OutOfMemoryError

    runs = {"too large": too_large, "good": lambda: torch.ones(3).sum(), "wrong": lambda: 1 / 0}
    times = bench.times(runs, math.inf)
    assert times["too large"] == {"out_of_memory": True}
    assert times["wrong"] == {"error": "ZeroDivisionError: division by zero"}
    assert times["good"]["runs"] == bench.sizes.rounds
    assert list(times) == list(runs)


def test_after_the_deadline_no_opponent_begins(bench):
    times = bench.times({"one": lambda: pytest.fail("it began")}, -math.inf)
    assert times == {"one": {"skipped": "no time was left"}}


@pytest.mark.parametrize("name", ["codes_matmul", "codes_t_matmul", "sampled_matmul"])
def test_a_wrong_product_is_seen(gpu, bench, monkeypatch, name):
    right = getattr(gpu.correctness, name)
    monkeypatch.setattr(gpu.correctness, name, lambda *factors: right(*factors) * 1.0001)
    line = gpu.correctness.cases(bench)["products"](0.0)
    assert line["error"].startswith("a difference above its bound: equal rows")
    assert line["error"].count(",") == 3  # of two layouts the wrong product alone


def test_a_wrong_gradient_of_a_step_is_seen(gpu, bench, monkeypatch):
    right = gpu.correctness.Training.step

    def wrong(training, rows):
        """Change a gradient on one of the two sides."""
        loss = right(training, rows)
        calls.append(loss)
        if len(calls) == 2:
            training.sae.encoder_weight.grad.mul_(1.001)
        return loss

    calls = []
    monkeypatch.setattr(gpu.correctness.Training, "step", wrong)
    line = gpu.correctness.cases(bench)["topk: step"](0.0)
    assert line["error"] == "a difference above its bound: gradient of encoder_weight"


def test_a_difference_that_is_no_number_is_above_every_bound(gpu, bench, monkeypatch):
    monkeypatch.setattr(gpu.correctness, "sampled_matmul", lambda *_: torch.tensor(math.nan))
    line = gpu.correctness.cases(bench)["products"](0.0)
    assert "sampled" in line["error"]
    assert line["difference_and_bound"]["equal rows, sampled"] == ["nan", 1e-5]


def test_crossover_lies_where_the_sparse_time_passes_the_dense_one(gpu):
    crossover = gpu.products.crossover
    shares = [0.01, 0.1, 1.0]
    squares = [share**2 for share in shares]
    found = crossover(shares, squares, 0.04)
    assert found["share"] == pytest.approx(0.2)
    assert found["between"] == [0.1, 1.0]
    assert crossover(shares, squares, 1e-5) == {"share": None, "because": "dense is faster at all shares from 0.01"}
    assert crossover(shares, squares, 2.0) == {"share": None, "because": "sparse is faster at all shares to 1"}
    assert crossover(shares, [None, *squares[1:]], 0.04)["share"] == pytest.approx(0.2)
    assert crossover(shares, squares, None) == {"share": None, "because": "not measured"}


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "jump_relu", "vanilla", "vanilla, sparse"])
def test_codes_of_clear_rows_do_not_change_by_rounding(gpu, bench, kind):
    models = gpu.correctness
    sae = models.make_sae(kind, bench.sizes)
    rows = models.clear_rows(sae, models.random_rows(bench.sizes.checked_rows, bench.sizes.width, 0))
    assert len(rows) > bench.sizes.checked_rows // 3
    active = [sae(each).codes for each in (rows, rows * 1.5, (rows.double() * (1 + 1e-7)).float())]
    dense = [codes if isinstance(codes, torch.Tensor) else codes.to_dense() for codes in active]
    assert torch.equal(dense[0] > 0, dense[1] > 0)
    assert torch.equal(dense[0] > 0, dense[2] > 0)
