"""Part "waits": where the time of a step goes, and how often the process waits for the GPU.

A wait is counted in three ways: calls of CUDA's runtime that wait and copies from the device, as the profiler sees
them; warnings of torch's own check for waits, with the line of our code; operations that would wait on a GPU, which a
rehearsal counts too. A profiler's own waits are taken off.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_parts.bench import Bench, Case, Line
from gpu_parts.models import KINDS, make_sae, trainings
from monoloss import MonoScore
from monoloss.benchmark.measure import random_rows

RUNTIME_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
COPIES = "Memcpy DtoH"
WAITING_OPERATIONS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")
_WARNING = "called a synchronizing CUDA operation"
_N_KERNELS, _LONGEST_NAME = 10, 80


def cases(bench: Bench) -> dict[str, Case]:
    """Return the cases of this part by name."""
    found: dict[str, Case] = {}
    for kind in KINDS:
        for name in ("ours", "ours + MonoLoss", "ours + MonoLoss, memory", "dense + MonoLoss"):
            if name == "ours + MonoLoss, memory" or kind == "topk":
                found[f"step: {kind}, {name}"] = partial(_step, bench, kind, name)
    return found | {"score: encode and update": partial(_score, bench)}


def _step(bench: Bench, kind: str, name: str, _deadline: float) -> Line:
    """Look into a training step."""
    sizes = bench.sizes
    rows = random_rows(sizes.step_batches[0], sizes.width, 0).to(bench.device)
    training = trainings(kind, make_sae(kind, sizes).to(bench.device))[name]()
    return look_into(bench, lambda: training.step(rows))


@torch.no_grad()
def _score(bench: Bench, _deadline: float) -> Line:
    """Look into the scoring of a batch."""
    sizes = bench.sizes
    rows = random_rows(sizes.step_batches[0], sizes.width, 0).to(bench.device)
    sae = make_sae("topk", sizes).eval().to(bench.device)
    metric = MonoScore(sizes.width, sizes.n_latents).to(bench.device)
    return look_into(bench, lambda: metric.update(rows, sae.encode(rows)))


def look_into(bench: Bench, run: Callable[[], object]) -> Line:
    """Return time, top kernels and waits of a run, each for one run on average."""
    n = bench.sizes.profiled_steps
    with bench.like_a_gpu():
        for _ in range(3):
            run()
        seconds = bench.seconds_of(run, n)
        seen, own = _profiled(bench, run, n), _profiled(bench, lambda: None, 1)
        line: Line = {"step_s": seconds, **_kernels(seen, n, bench, seconds)}
        counted = _counts(seen) - _counts(own)
        line["waits_in_runtime"] = {name: counted[name] / n for name in (*RUNTIME_WAITS, COPIES)}
        line["waiting_operations"] = {name: counted[name] / n for name in WAITING_OPERATIONS if counted[name]}
        line["waits_in_code"] = _warned(run, n) if bench.is_gpu else None
    return line


def _profiled(bench: Bench, run: Callable[[], object], n: int) -> profile:
    """Return the profile of some runs."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.is_gpu else [])]
    bench.synchronise()
    with profile(activities=activities) as seen:
        for _ in range(n):
            run()
    return seen


def _counts(seen: profile) -> Counter[str]:
    """Return how often each kind of wait is in a profile."""
    counts: Counter[str] = Counter()
    for event in seen.events() or ():
        if event.name in RUNTIME_WAITS or event.name in WAITING_OPERATIONS:
            counts[event.name] += 1
        elif event.name.startswith(COPIES):
            counts[COPIES] += 1
    return counts


def _kernels(seen: profile, n: int, bench: Bench, seconds: float) -> Line:
    """Return the kernels (on a CPU: operations) that take the most time, and for a GPU the share of time it works."""
    kind = DeviceType.CUDA if bench.is_gpu else DeviceType.CPU
    events = [event for event in seen.key_averages() if event.device_type == kind and not _is_annotation(event)]
    times = {event: _microseconds(event, bench) for event in events}
    top = sorted(events, key=times.__getitem__, reverse=True)[:_N_KERNELS]
    kernels = [
        {"name": event.key[:_LONGEST_NAME], "ms": round(times[event] / n / 1000, 4), "calls": event.count / n}
        for event in top
    ]
    busy = sum(times.values()) / n / 1e6
    return {"top_kernels": kernels, "busy_share": busy / seconds if bench.is_gpu else None}


def _is_annotation(event: Any) -> bool:
    """Return whether an event is no work but a span of time that torch marks, such as a step of an optimiser."""
    return getattr(event, "is_user_annotation", False) or event.key.startswith(("Optimizer.", "ProfilerStep"))


def _microseconds(event: Any, bench: Bench) -> float:
    return float(event.self_device_time_total if bench.is_gpu else event.self_cpu_time_total)


def _warned(run: Callable[[], object], n: int) -> dict[str, float]:
    """Return how often each line of Python made the process wait, in one run on average."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(n):
                run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{'/'.join(Path(each.filename).parts[-2:])}:{each.lineno}" for each in caught if _WARNING in str(each.message)
    )
    return {place: count / n for place, count in places.most_common()}
