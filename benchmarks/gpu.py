"""Check and time the library on one GPU, in at most six minutes, on random data, with nothing installed of ours.

    python benchmarks/gpu.py [--parts correctness,step] [--out FILE]
    python benchmarks/gpu.py --rehearse

Prints a line of JSON as soon as each case of a part is done, and adds it to `results/gpu.json`, so that a run that is
cut off leaves what it has. Parts: correctness (GPU against CPU), score, step (training), waits (where the time goes),
products (sparse against dense), memory. README.md explains the lines. An error is told in its line and the other cases
still run; the exit status is then 1. Needs torch, numpy, torchmetrics, jaxtyping, safetensors and huggingface_hub. A
rehearsal runs everything small on the CPU and writes no file unless `--out` names one.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_parts import correctness, memory, products, score, steps, waits
from gpu_parts.bench import Bench, Case, Line, has_error, text_of
from gpu_parts.sizes import FULL, REHEARSAL

from monoloss.benchmark.machine import machine_metadata
from monoloss.files.json import write_json

RESULT = Path(__file__).parent / "results" / "gpu.json"
PARTS: Mapping[str, Callable[[Bench], Mapping[str, Case]]] = {
    "correctness": correctness.cases,
    "score": score.cases,
    "step": steps.cases,
    "waits": waits.cases,
    "products": products.cases,
    "memory": memory.cases,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return the exit status: 0, 1 if a case failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="names with commas between them")
    parser.add_argument("--rehearse", action="store_true", help="run everything small on the CPU")
    parser.add_argument("--out", type=Path, help="file of the results")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {', '.join(map(repr, unknown))}: there are {', '.join(PARTS)}")
    if not options.rehearse and not torch.cuda.is_available():
        print("torch finds no GPU with CUDA here; --rehearse runs everything small on the CPU", file=sys.stderr)
        return 2
    if options.rehearse:
        torch.set_num_threads(1)  # small products wait for no busy core
    bench = Bench(torch.device("cpu"), REHEARSAL) if options.rehearse else Bench(torch.device("cuda"), FULL)
    out = options.out or (None if options.rehearse else RESULT)
    result: dict[str, Any] = {"about": about(bench), "rehearsal": options.rehearse, "parts": {}}
    end = time.perf_counter() + bench.sizes.total_s
    tell({"part": "machine", **result["about"], "rehearsal": options.rehearse})
    for part in parts:
        for case, line in lines_of(part, bench, end):
            tell({"part": part, "case": case, **line})
            result["parts"].setdefault(part, {})[case] = line
            if out is not None:
                write_json(out, result, format_version=1)
    return int(any(has_error(case) for part in result["parts"].values() for case in part.values()))


def lines_of(part: str, bench: Bench, end: float) -> Iterator[tuple[str, Line]]:
    """Yield name and line of each case of a part, which share its time; none begins after `end`."""
    start = time.perf_counter()
    try:
        cases = PARTS[part](bench)
    except Exception as error:  # the other parts still run
        yield "all", {"error": text_of(error)}
        return
    end_of_part = start + bench.sizes.seconds[part]
    for number, (name, case) in enumerate(cases.items()):
        start = time.perf_counter()
        if start > end:
            yield name, {"skipped": "no time was left"}
            continue
        deadline = start + max(0.0, end_of_part - start) / (len(cases) - number)
        yield name, {**line_of(case, deadline), "took_s": round(time.perf_counter() - start, 3)}
        bench.free_memory()


def line_of(case: Case, deadline: float) -> Line:
    """Return the line of a case, or its error."""
    torch.manual_seed(0)
    try:
        line = case(deadline)
        json.dumps(line, allow_nan=False)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    except Exception as error:  # the other cases still run
        return {"error": text_of(error)}
    return line


def tell(line: Line) -> None:
    """Print a line at once, also into a pipe."""
    print(json.dumps(line), flush=True)


def about(bench: Bench) -> dict[str, Any]:
    """Return the metadata of the machine, with the GPU."""
    found = machine_metadata()
    if bench.is_gpu:
        properties = torch.cuda.get_device_properties(bench.device)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 2**30, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }
    return found


if __name__ == "__main__":
    gc.freeze()  # each of a hundred collections then takes no time, instead of 0.2 s
    sys.exit(main())
