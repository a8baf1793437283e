"""Estimates, timing and the lines that an extraction shows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from monoloss.data.extraction import progress
from monoloss.data.extraction.progress import ExtractionReport, Timing, bytes_of_an_image, check_disk
from monoloss.data.extraction.run import extract
from monoloss.errors import InputError
from support.extraction import FakeEncoder, ListSource, silent


class _Disk(NamedTuple):
    total: int
    used: int
    free: int


class _Clock:
    """Seconds that pass only where a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    stopped = _Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=stopped))
    return stopped


def test_bytes_of_rows_labels_and_thumbnails() -> None:
    assert bytes_of_an_image(10, 1, "float32", None) == 10 * 4 + 8 + 200
    assert bytes_of_an_image(10, 6, "uint8", 20) == 6 * (10 + 8) + 3 * 20 * 20 + 200


def test_the_estimate_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def disk(path: Path) -> _Disk:
        asked.append(path)
        return _Disk(10**9, 0, 2**20)

    monkeypatch.setattr("shutil.disk_usage", disk)
    text = check_disk(tmp_path / "new" / "store", 1000, 1, 512)
    assert text == "1,000 images, 519.5 KiB on disk (1.0 MiB free)"
    assert asked == [tmp_path]  # the nearest folder that exists
    assert check_disk(tmp_path, None, 0, 512) == "512 B an image; 1.0 MiB free, for 2,048 images"
    assert check_disk(tmp_path, 2048, 0, 512)  # all of the free space


@pytest.mark.door
def test_one_byte_more_than_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Disk(10**9, 0, 2**20 - 1))
    with pytest.raises(InputError, match=r"got 1024\.0 KiB of free space; expected 1\.0 MiB for 2048 images"):
        check_disk(tmp_path, 2048, 0, 512)


def test_times_add_up_to_shares_and_a_speed(clock: _Clock) -> None:
    timing = Timing(n_images=50, _started=clock.now)
    assert timing.images_per_s == 0.0
    for part, seconds in (("wait_s", 1.0), ("model_s", 5.0), ("wait_s", 1.0), ("write_s", 1.0)):
        with timing.of(part):
            clock.now += seconds
    clock.now += 2.0
    with timing.of("write_s"):
        pass
    assert (timing.wait_s, timing.model_s, timing.write_s, timing.total_s) == (2.0, 5.0, 1.0, 10.0)
    assert timing.images_per_s == 5.0
    shares = "model 50%, waiting for decoded images 20%, writing 10%"
    assert str(timing) == f"50 images in 10.0 s, 5.0 images/s ({shares})"


def test_the_time_that_is_left_is_said_once(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    report = ExtractionReport(show=True)
    with report.bar(100, 20) as advance:
        for seconds in (0.0, 4.0, 2.0, 6.0):  # too early before 5 s
            clock.now += seconds
            advance(10)
    lines = [line for line in capsys.readouterr().err.splitlines() if "to go" in line]
    assert len(lines) == 1
    assert "3.3 images/s: about 15.0 s to go" in lines[0]  # 20 images in 6 s, 50 are left


def test_a_silent_report(capsys: pytest.CaptureFixture[str]) -> None:
    report = ExtractionReport(show=False)
    report.say("nothing")
    with report.bar(100, 20) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.door
def test_what_cannot_fit_on_the_disk_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Disk(10**9, 0, 30_000))
    encoder = FakeEncoder()
    with pytest.raises(InputError, match=r"s: got 29\.3 KiB of free space; expected 2\.[0-9]+ MiB for 10000 images"):
        silent(ListSource(10000), encoder, tmp_path / "s", rows_per_shard=10000)
    assert encoder.calls == 0
    assert not (tmp_path / "s").exists()
    silent(ListSource(3), encoder, tmp_path / "s")


def test_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("monoloss.data.extraction.progress._WARM_UP_S", 0.0)
    extract(ListSource(9, contents={2: b"x"}), FakeEncoder(), tmp_path / "s", workers=0, batch_size=3)
    streams = capsys.readouterr()
    assert not streams.out
    lines = streams.err.splitlines()
    assert lines[0].startswith("9 images, 21.6 KiB on disk (")
    assert lines[0].endswith("a row of 6 x float32 an image")
    assert "images/s: about " in lines[1]
    assert "9/9 images" in streams.err
    assert "9 images in " in lines[-2]
    assert "model " in lines[-2]
    assert lines[-1].startswith("1 files gave no row; monoloss info ")
