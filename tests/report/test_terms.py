"""The glossary explains every term of the pages, each in one sentence."""

from __future__ import annotations

import re

from monoloss.report.overview import page_files
from monoloss.report.runs import report_runs
from monoloss.report.terms import TERMS
from support.reports import bare


def test_every_term_of_the_pages_is_explained():
    pages = page_files(report_runs([bare()]), [])
    used = set(re.findall(r'data-term="(\w+)"', "".join(pages.values())))
    assert used <= set(TERMS)
    for script in ("latent_table.js", "latent_view.js"):
        assert set(re.findall(r'term: "(\w+)"|term\("(\w+)"\)', pages[f"assets/{script}"])) <= {
            pair for key in TERMS for pair in ((key, ""), ("", key))
        }
    for term in TERMS.values():
        assert term.explanation.endswith(".")
        assert term.explanation.count(". ") == 0
