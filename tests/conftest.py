"""What holds for every test: no network, no clock, no screen, the same numbers on every machine."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

import hypothesis
import pytest
import torch

from support import rounding

torch.set_num_threads(1)  # sums run in the same order everywhere, and small products wait for no busy core
hypothesis.settings.register_profile("house", derandomize=True, deadline=None)
hypothesis.settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker("door")  # examples show errors, so they run in the call without the type checker
        if item.get_closest_marker("slow") and os.environ.get("SLOW") != "1":
            item.add_marker(pytest.mark.skip(reason="slow: runs with SLOW=1"))
        if item.get_closest_marker("real_data") and not os.environ.get("REAL_DATA"):
            item.add_marker(pytest.mark.skip(reason="real data: runs where REAL_DATA names its folder"))


def pytest_configure(config: pytest.Config) -> None:
    mode = rounding.start_if_asked()  # for the whole session: a fixture and its test must round alike
    if mode is not None:
        config.add_cleanup(lambda: mode.__exit__(None, None, None))
