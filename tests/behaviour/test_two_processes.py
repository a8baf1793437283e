"""Two processes = one process: score, loss gradient, memory and a layer trained under DistributedDataParallel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from support import two_processes
from support.two_processes import N_ROWS, SCENARIOS, Result

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Result]]:
    """What each of the two processes got in every scenario."""
    folder = tmp_path_factory.mktemp("two_processes")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", two_processes.__name__, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_are_one(name, ranks):
    """All is equal but the gradients of rows: those are halved first, as DistributedDataParallel averages."""
    alone = SCENARIOS[name](slice(0, N_ROWS))
    first, second = ranks[0][name], ranks[1][name]
    assert first.keys() == second.keys() == alone.keys()
    float32 = "float32" in name
    for key, expected in alone.items():
        rtol, atol = (1e-5, 1e-6) if float32 else (1e-11, 1e-13)
        if key.startswith("rows: "):
            assert expected.abs().max() > 1e-4  # or nothing would be compared
            joined = torch.cat([first[key], second[key]]) / 2
            torch.testing.assert_close(joined, expected, rtol=rtol, atol=atol, msg=key)
        else:
            for got in (first[key], second[key]):
                torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, equal_nan=True, msg=key)


def test_both_processes_hold_the_same_memory(ranks):
    names = [key for key in ranks[0]["loss_with_memory"] if "memory_" in key]
    assert len(names) == 6
    for name in names:
        # a sum of two numbers, which both processes are told
        assert torch.equal(ranks[0]["loss_with_memory"][name], ranks[1]["loss_with_memory"][name])
