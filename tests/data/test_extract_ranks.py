"""Two processes write the store that one process writes, byte for byte."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import extracting_process
from extract_samples import contents_of, write_images

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo")


def run(folder: Path, *scenarios: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        common["GLOO_SOCKET_IFNAME"] = "lo"  # no name of this machine has to be looked up
    command = [sys.executable, "-W", "error", extracting_process.__file__, str(folder), *scenarios]
    processes = [
        subprocess.Popen(
            command,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The stores of one process, and those of two."""
    parent = tmp_path_factory.mktemp("ranks")
    names = write_images(parent / "files", 18)
    (parent / "files" / names[4]).write_bytes(b"broken")
    for n in (1, 2):
        (parent / str(n)).mkdir()
    extracting_process.stores(parent / "1")
    extracting_process.alone(parent / "1")
    run(parent / "2", "stores")
    run(parent / "2", "alone")
    return parent / "1", parent / "2"


@pytest.mark.parametrize("name", ["images", "stream", "patches", "small", "alone"])
def test_two_are_one(stores: tuple[Path, Path], name: str) -> None:
    one, two = (contents_of(folder / name) for folder in stores)
    assert len(one) > 2
    assert two == one


def test_two_go_on_with_the_shards_of_one(stores: tuple[Path, Path]) -> None:
    one, two = stores
    for name in ("images", "stream"):
        (two / name / "manifest.json").unlink()
        for shard in (1, 2, 4):
            (two / name / f"shard-0000{shard}.safetensors").unlink()
        (two / name / ".shard-00001.jsonl.01234567.tmp").mkdir()
    run(two, "going_on")
    for name in ("images", "stream"):
        assert contents_of(two / name) == contents_of(one / name)


def test_processes_that_do_not_agree(tmp_path: Path) -> None:
    run(tmp_path, "other_images", "one_fails")
    assert not (tmp_path / "failed" / "manifest.json").exists()
