"""One of several processes that extract into one store: ``python -m support.extracting_process SCENARIO FOLDER``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from monoloss.data.extraction.run import extract
from monoloss.data.images import open_images
from monoloss.errors import InputError
from support import rounding
from support.extraction import FakeEncoder, ListSource


def write(folder: Path, name: str, source: Any, **options: Any) -> None:
    encoder = FakeEncoder(**options)
    store = extract(source, encoder, folder / name, workers=0, batch_size=3, rows_per_shard=4, progress=False)
    assert store.n_rows, name


def stores(folder: Path) -> None:
    """A folder, a stream, patches, fewer shards than processes; and a store that is finished already."""
    write(folder, "images", open_images(f"imagefolder:{folder.parent / 'files'}"))
    write(folder, "stream", ListSource(18, stream=True, labels="multi", contents={5: b"x"}))
    write(folder, "patches", ListSource(9, labels="single"), patches=True)
    write(folder, "small", ListSource(3))
    write(folder, "small", ListSource(3))


def resumed(folder: Path) -> None:
    """Shards of both processes are missing in each."""
    write(folder, "images", open_images(f"imagefolder:{folder.parent / 'files'}"))
    write(folder, "stream", ListSource(18, stream=True, labels="multi", contents={5: b"x"}))


def alone(folder: Path) -> None:
    """Without a process group: it is made for the run, and is gone afterwards."""
    write(folder, "alone", ListSource(18))
    assert not dist.is_initialized()


def other_images(folder: Path) -> None:
    """Both are refused where one has other images; nothing is written."""
    n = 9 + int(os.environ["RANK"])
    with pytest.raises(
        InputError, match="ranks: got other arguments or images in process 1 than in process 0; expected"
    ):
        write(folder, "other", ListSource(n))
    assert not (folder / "other").exists()


def one_fails(folder: Path) -> None:
    """The one that is left says so in one sentence."""

    def fail(number: int, rows: torch.Tensor) -> torch.Tensor:
        os._exit(0)

    first = os.environ["RANK"] == "0"
    with pytest.raises(
        InputError, match="ranks: got a process that has ended early; expected all of them until the end"
    ):
        write(folder, "failed", ListSource(9), **({} if first else {"on_call": fail}))


SCENARIOS: dict[str, Callable[[Path], None]] = {
    scenario.__name__: scenario for scenario in (stores, resumed, alone, other_images, one_fails)
}

if __name__ == "__main__":
    rounding.start_if_asked()  # as the process whose store is compared with this one's
    torch.set_num_threads(1)
    folder, scenarios = Path(sys.argv[1]), sys.argv[2:]
    for name in scenarios:
        if name != "alone" and not dist.is_initialized():  # the port of the first group may still be in use: a file
            rank, meeting = int(os.environ["RANK"]), f"file://{folder / scenarios[-1]}.meeting"
            dist.init_process_group("gloo", meeting, timedelta(seconds=60), world_size=2, rank=rank)
        SCENARIOS[name](folder)
    if "one_fails" in scenarios:
        os._exit(0)  # torch sometimes aborts when it takes down a group that has lost a process
    else:
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total == 2  # the group is still there
        dist.destroy_process_group()
