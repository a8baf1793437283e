"""Two processes write the store that one process writes, byte for byte."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from monoloss.data.extraction.run import extract
from monoloss.errors import InputError
from support import extracting_process
from support.extraction import FakeEncoder, ListSource, contents_of, write_images

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo")


def run(folder: Path, *scenarios: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        common["GLOO_SOCKET_IFNAME"] = "lo"  # no name of this machine has to be looked up
    command = [sys.executable, "-W", "error", "-m", extracting_process.__name__, str(folder), *scenarios]
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
    run(parent / "2", "alone", "stores")
    return parent / "1", parent / "2"


@pytest.mark.parametrize("name", ["images", "stream", "patches", "small", "alone"])
def test_two_are_one(stores: tuple[Path, Path], name: str) -> None:
    one, two = (contents_of(folder / name) for folder in stores)
    assert len(one) > 2
    assert two == one


def test_two_resume_with_the_shards_of_one_and_fail_together(stores: tuple[Path, Path]) -> None:
    one, two = stores
    for name in ("images", "stream"):
        (two / name / "manifest.json").unlink()
        for shard in (1, 2, 4):
            (two / name / f"shard-0000{shard}.safetensors").unlink()
        (two / name / ".shard-00001.jsonl.01234567.tmp").mkdir()
    run(two, "resumed", "other_images", "one_fails")
    for name in ("images", "stream"):
        assert contents_of(two / name) == contents_of(one / name)
    assert not (two / "failed" / "manifest.json").exists()


@pytest.mark.door
def test_processes_that_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"ranks: got WORLD_SIZE=2 and processes that cannot connect \(.*RANK"):
        extract(ListSource(3), FakeEncoder(), tmp_path / "s", workers=0, progress=False)
    assert not (tmp_path / "s").exists()
