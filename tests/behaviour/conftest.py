"""A browser for the tests that look at pages; where there is none they are skipped, unless REPORT_BROWSER=1."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def browser_path() -> str | None:
    """The browser that CHROMIUM names, else one on the path."""
    return os.environ.get("CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser():
    must = os.environ.get("REPORT_BROWSER") == "1"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        if must:
            raise
        pytest.skip("playwright is not installed")
    path = browser_path()
    if path is None and not must:
        pytest.skip("no Chromium: CHROMIUM names one that is not on the path")
    assert path is not None, "REPORT_BROWSER=1, but no Chromium is there"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # as root there is none
        yield started
        started.close()


class Visit:
    """A page, and what went wrong on it."""

    def __init__(self, page) -> None:
        self.page = page
        self.troubles: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("requestfailed", lambda request: self.troubles.append(f"failed: {request.url}"))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, folder: Path, page: str = "latents.html", fragment: str = ""):
        """Go to a page of a report and wait until it shows what it should."""
        self.page.goto("about:blank")
        self.page.goto(f"{(folder / page).as_uri()}{fragment}")
        if page == "latents.html":
            self.page.wait_for_function("() => document.querySelector('#rows [role=row]') !== null")
        return self.page


@pytest.fixture
def visit(browser) -> Iterator[Visit]:
    """Fails if a page says anything on its console, or asks for anything but files."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(60_000)  # of a busy machine; nothing is timed
    visited = Visit(context.new_page())
    yield visited
    context.close()
    assert visited.troubles == []
    assert [url for url in visited.requests if not url.startswith(("file://", "data:", "blob:"))] == []


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """Folder and evaluations, by name, of a report of two runs."""
    from support.pages import report_of_two_runs  # not above: monoloss would be imported before its types are checked

    return report_of_two_runs(tmp_path_factory.mktemp("report"))
