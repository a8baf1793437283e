"""Time sorting, filtering and scrolling of 100 000 latents in the explorer, in headless Chromium.

    python benchmarks/report_page.py [--latents 100000] [--rounds 9]

The page is that of a report whose columns are replaced by random ones of that many latents. Times are measured in the
page, from the click until the browser has laid out the new rows. Asserts that the rows are in order. The environment
variable CHROMIUM names the browser; by default it is `chromium` on the path.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

import torch
from machine import write_result
from playwright.sync_api import Page, sync_playwright
from targets import Target, print_targets

from monoloss import FeatureStore, SparseAutoencoder, TopKConfig, evaluate
from monoloss.report.page import write_report
from monoloss.report.script_files import short_all, write_script

MEASURES = ("score", "lift", "n_eff", "density", "purity_binary", "purity_weighted")
N_CLASSES = 1000
# Milliseconds from an event until the browser has laid out the rows.
TIME = """([selector, event]) => {
  const element = document.querySelector(selector);
  const start = performance.now();
  if (event === "click") element.click();
  else element.dispatchEvent(new Event(event, { bubbles: true }));
  document.querySelector("#rows").lastElementChild?.getBoundingClientRect();
  return performance.now() - start;
}"""
TOP = """() => [...document.querySelectorAll("#rows [role=row]")].sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)
  .map((row) => Number(row.dataset.latent))"""


def main() -> None:
    """Write a page, measure and print its times, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("latents", 100_000), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        columns = write_page(Path(folder), options.latents)
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto((Path(folder) / "report" / "latents.html").as_uri())
        page.wait_for_function("() => document.querySelector('#rows [role=row]') !== null")
        times = measured(page, columns, options.rounds)
        version = browser.version
        browser.close()
    print(f"{options.latents} latents in Chromium {version}")
    for name, values in times.items():
        print(f"  {name:24} median {statistics.median(values):6.1f} ms   maximum {max(values):6.1f} ms")
    slowest = max(statistics.median(values) for name, values in times.items() if name.startswith("sort"))
    result = {
        "latents": options.latents,
        "chromium": version,
        "milliseconds": {
            name: {"median": statistics.median(values), "maximum": max(values)} for name, values in times.items()
        },
        "targets": print_targets([Target("explorer, slowest sort", slowest, at_most=300, unit=" ms")]),
    }
    write_result("report_page", result)


def write_page(folder: Path, n_latents: int) -> dict[str, list[float]]:
    """Write a report of one run, replace its columns by random ones, and return these by name."""
    labels = torch.randint(0, N_CLASSES, (64,), generator=torch.Generator().manual_seed(0))
    names = [f"class {number}" for number in range(N_CLASSES)]
    store = FeatureStore.create(folder / "store", torch.randn(64, 8), labels, class_names=names)
    sae = SparseAutoencoder(8, TopKConfig("topk", n_latents=16, k=2))
    found = evaluate(store, {"mine": sae})["mine"]
    report = write_report([found], folder / "report", stores=[store]).parent
    generator = torch.Generator().manual_seed(1)
    columns = {name: short_all(torch.rand(n_latents, generator=generator).double().tolist()) for name in MEASURES}
    classes = torch.randint(0, N_CLASSES, (n_latents,), generator=generator).tolist()
    write_script(
        report / "data" / "run-0" / "columns.js", "columns", columns | {"dominant_class": classes}, key="run-0"
    )
    runs = report / "data" / "runs.js"
    text = runs.read_text(encoding="ascii")
    assert text.count('"n_latents":16') == 1
    runs.write_text(text.replace('"n_latents":16', f'"n_latents":{n_latents}'), encoding="ascii")
    return columns


def measured(page: Page, columns: dict[str, list[float]], rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each action of a user in each round; assert the order of the rows."""
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name in (*MEASURES, "latent", "dominant_class"):
            times.setdefault(f"sort by {name}", []).append(page.evaluate(TIME, [f"[data-sort={name}]", "click"]))
            if name in columns:
                down = page.locator(f"#head [data-column={name}]").get_attribute("aria-sort") == "descending"
                values = columns[name]
                order = sorted(range(len(values)), key=lambda j: (-values[j] if down else values[j], j))
                top = page.evaluate(TOP)
                assert len(top) > 20
                assert top == order[: len(top)], name
        for text in ("7", "class 12", ""):
            page.evaluate("text => { document.querySelector('#search').value = text; }", text)
            times.setdefault(f"search {text!r}", []).append(page.evaluate(TIME, ["#search", "input"]))
        times.setdefault("last of all", []).append(
            page.evaluate(
                """() => {
                  const start = performance.now();
                  const body = document.querySelector("#body");
                  body.scrollTop = body.scrollTop ? 0 : body.scrollHeight;
                  return new Promise((done) => requestAnimationFrame(() => done(performance.now() - start)));
                }"""
            )
        )
        page.evaluate("() => { document.querySelector('#body').scrollTop = 0; }")
    return times


if __name__ == "__main__":
    main()
