"""The switch that takes the path of GPUs on the CPU."""

from __future__ import annotations

import pytest
import torch

from monoloss.waiting import branch_free, may_branch


def test_only_the_cpu_branches():
    assert may_branch(torch.device("cpu"))
    assert not may_branch(torch.device("cuda"))
    assert not may_branch(torch.device("mps"))


def test_branch_free_ends_with_its_block_and_after_an_error():
    cpu = torch.device("cpu")
    with branch_free():
        assert not may_branch(cpu)
        with branch_free():
            assert not may_branch(cpu)
        assert not may_branch(cpu)
    assert may_branch(cpu)
    with pytest.raises(RuntimeError, match="inside"), branch_free():
        raise RuntimeError("inside")
    assert may_branch(cpu)
