"""Device of a run, and how times, peak memory and failures are measured on it."""

from __future__ import annotations

import gc
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from gpu_parts.sizes import Sizes
from monoloss.benchmark.measure import Timing
from monoloss.waiting import branch_free

Line: TypeAlias = dict[str, Any]
Case: TypeAlias = Callable[[float], Line]  # gets the `time.perf_counter()` after which no further sample begins
_MOST_CALLS = 100  # runs in one sample
_LONG_S = 2.0  # a run that takes longer counts from the first on


@dataclass(frozen=True)
class Bench:
    """A device and the sizes of what runs on it.

    Attributes:
        device: the GPU; in a rehearsal the CPU.
        sizes: sizes of models and data.
    """

    device: torch.device
    sizes: Sizes

    @property
    def is_gpu(self) -> bool:
        """Whether this is no rehearsal."""
        return self.device.type == "cuda"

    def like_a_gpu(self) -> AbstractContextManager[object]:
        """Return a context in which the library takes its path for GPUs, in a rehearsal too."""
        return nullcontext() if self.is_gpu else branch_free()

    def synchronise(self) -> None:
        """Wait until the device has done all its work."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def free_memory(self) -> None:
        """Give memory without an owner back to the device."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def seconds_of(self, run: Callable[[], object], calls: int = 1) -> float:
        """Return the mean time of some runs in a row, from an idle device until it is idle again."""
        self.synchronise()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        self.synchronise()
        return (time.perf_counter() - start) / calls

    def peak_mb(self, run: Callable[[], object]) -> float:
        """Return how much memory torch's tensors took at most during a run, beyond those that were there before.

        On a CPU the largest memory of the process so far.
        """
        if not self.is_gpu:
            run()
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.free_memory()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        self.synchronise()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def times(self, opponents: Mapping[str, Callable[[], object]], deadline: float) -> Line:
        """Time opponents in turn, every second round in reverse order, after two runs that count only if they are long.

        Returns:
            For each opponent median, minimum and number of samples, or why there are none; and ``cut_short`` where the
            deadline came before the last round.
        """
        found: Line = {}
        calls: dict[str, int] = {}
        samples: dict[str, list[float]] = {name: [] for name in opponents}
        for name, run in opponents.items():
            if time.perf_counter() > deadline:
                found[name] = {"skipped": "no time was left"}
                continue
            with told(found, name, self):
                seconds = self.seconds_of(run)
                if seconds > _LONG_S:
                    samples[name].append(seconds)
                else:  # the first run compiled and allocated
                    seconds = self.seconds_of(run)
                calls[name] = max(1, min(_MOST_CALLS, math.ceil(self.sizes.sample_s / seconds)))
        for number in range(self.sizes.rounds):
            for name in list(samples)[:: -1 if number % 2 else 1]:
                if name in found:
                    continue
                if samples[name] and time.perf_counter() > deadline:
                    found["cut_short"] = True
                    break
                with told(found, name, self):
                    samples[name].append(self.seconds_of(opponents[name], calls[name]))
        measured = {name: Timing(tuple(each)).as_dict() for name, each in samples.items() if name not in found}
        return {name: measured.get(name, found.get(name)) for name in opponents} | {
            key: value for key, value in found.items() if key == "cut_short"
        }


@contextmanager
def told(line: Line, name: str, bench: Bench) -> Iterator[None]:
    """Put an error of the block into ``line[name]`` instead of raising it; memory that runs out is no error."""
    try:
        yield
        return
    except torch.OutOfMemoryError:
        line[name] = {"out_of_memory": True}
    except Exception as error:  # whatever fails, the rest is still measured
        line[name] = {"error": text_of(error)}
    bench.free_memory()  # after the block of the error, whose frames hold tensors


def text_of(error: Exception) -> str:
    """Return kind and text of an error in one line of at most 500 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def has_error(value: object) -> bool:
    """Return whether a line, or anything inside it, has the key "error"."""
    return isinstance(value, Mapping) and ("error" in value or any(map(has_error, value.values())))


def median(times: Line, name: str) -> float | None:
    """Return the median time of an opponent, None where it was not timed."""
    seconds: float | None = times[name].get("median_s")
    return seconds


def ratio(times: Line, name: str, of: str) -> float | None:
    """Return the quotient of two opponents' median times, None where one was not timed."""
    one, other = median(times, name), median(times, of)
    return None if one is None or other is None else one / other
