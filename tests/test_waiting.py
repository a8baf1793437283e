"""The switch that takes the path of GPUs on the CPU."""

from __future__ import annotations

import pytest
import torch

from monoloss.waiting import branch_free, may_branch, may_check


def test_where_values_are_at_hand():
    assert [may_branch(torch.device(name)) for name in ("cpu", "mps", "cuda")] == [True, True, False]
    assert [may_check(torch.device(name)) for name in ("cpu", "mps", "cuda")] == [True, False, False]


@pytest.mark.slow
def test_neither_in_code_that_is_traced():
    cpu = torch.device("cpu")
    traced = torch.compile(lambda x: x + may_branch(cpu) + may_check(cpu), backend="eager", fullgraph=True)
    assert float(traced(torch.zeros(()))) == 0.0


def test_branch_free_ends_with_its_block_and_after_an_error():
    cpu = torch.device("cpu")
    with branch_free():
        assert not may_branch(cpu)
        with branch_free():
            assert not may_branch(cpu)
        assert not may_branch(cpu)
    assert may_branch(cpu)
    assert may_check(cpu)
    with pytest.raises(RuntimeError, match="inside"), branch_free():
        raise RuntimeError("inside")
    assert may_branch(cpu)
