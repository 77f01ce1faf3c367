"""The report: whole, escaped, self-contained, and readable on a phone."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from fakes import EVIL, Repository, bench

from bench import plots, words


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_tells_every_package_and_claim(finished: Repository) -> None:
    page = Page(finished.read("report.html"))
    for told in ("4 of 6 claims hold", "1 fails", "1 not measured", "2 evaluations broke", "not installed", "crashed",
                 "RuntimeError: the reason", "3.3× faster", "20× slower", "no GPU"):  # fmt: skip
        assert told in page.text, told
    assert len([attrs for tag, attrs in page.tags if tag == "article"]) == 6


def test_all_text_is_escaped(finished: Repository) -> None:
    html = finished.read("report.html")
    assert EVIL in Page(html).text
    assert "<script" not in html
    assert "<script" not in finished.read("report.md")
    ElementTree.fromstring(finished.read("junit.xml"))


def test_the_page_asks_for_nothing_outside_itself(finished: Repository) -> None:
    html = finished.read("report.html")
    loading = [
        a[key] for tag, a in Page(html).tags for key in ("src", "srcset", "data", "poster", "action") if key in a
    ]
    loading += [a["href"] for tag, a in Page(html).tags if tag == "link"]
    assert loading
    assert all(value and value.startswith("data:") for value in loading)
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|https?:", style)


def test_large_pictures_are_linked_with_the_reason(repository: Repository) -> None:
    repository.add(
        "p",
        """
        (options.out / "big.png").write_bytes(b"x" * (4 * 2**20))
        results(claim(), artifacts=[{"path": "big.png", "title": "t"}])
        """,
    )
    repository.run()
    assert "not embedded: above 3.0 MiB" in repository.read("report.html")


def test_results_jsonl_has_a_line_for_everything_with_its_origin(finished: Repository) -> None:
    lines = [json.loads(line) for line in finished.read("results.jsonl").splitlines()]
    kinds = [line["kind"] for line in lines]
    assert {kind: kinds.count(kind) for kind in kinds} == {"run": 4, "claim": 6, "metric": 1, "comparison": 2}
    assert all({"package", "version", "profile", "seed", "commit", "kind"} <= set(line) for line in lines)


def test_junit_has_a_case_per_claim(finished: Repository) -> None:
    suites = {suite.get("name"): suite for suite in ElementTree.fromstring(finished.read("junit.xml"))}
    counts = {n: [s.get(k) for k in ("tests", "failures", "errors", "skipped")] for n, s in suites.items()}
    assert counts["good"] == ["4", "0", "0", "0"]
    assert counts["failing"] == ["2", "1", "0", "1"]
    assert counts["crashing"] == counts["absent"] == ["1", "0", "1", "0"]


def test_report_judges_the_files_again(repository: Repository) -> None:
    repository.add("p", "results(claim())")
    assert repository.run().returncode == 0
    path = repository.out / "p" / "results.json"
    path.write_text(path.read_text().replace('"holds": true', '"holds": false'))
    done = bench("report", str(repository.out))
    assert (done.returncode, "contradicts its own numbers" in done.stdout) == (2, True)


def test_plots_of_extreme_figures_are_finite() -> None:
    for measured in (0, -1e-300, 1e300, 5e-324, 1e308, -1e308, 10**300):
        for value in (0, 1, -1e300, 1e-300):
            for op in (">", "=="):
                plot = plots.interval(
                    {"measured": measured, "test": {"op": op, "value": value}, "ci": [measured, measured]}
                )
                assert plot is None or 0 <= plot.value <= 100


def test_ratio_words_honour_what_is_better() -> None:
    def word(unit: str, better: str, gain: float | None) -> str:
        return words.comparison({"unit": unit, "better": better}, gain)

    assert word("ms", "lower", 3.4) == "3.4× faster"
    assert word("ms", "lower", 0.5) == "2.0× slower"
    assert word("token/s", "higher", 12) == "12× faster"
    assert word("MiB", "lower", 2) == "2.0× smaller"
    assert word("", "higher", 1.5) == "1.50× higher (better)"
    assert word("", "lower", 0.5) == "2.0× higher (worse)"
    assert word("s", "lower", 1.01) == "about the same"
    assert word("s", "lower", None) == "no ratio"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_sideways_scrolling_or_requests(
    finished: Repository, browser: Browser, width: int
) -> None:
    path: Path = finished.out / "report.html"
    browser.open(path, width)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    spilling = (
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('pre, thead') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert browser.evaluate(spilling) == []
    assert browser.evaluate("[...document.images].every(i => i.naturalWidth > 0)") is True
    assert [url for url in browser.requests if not url.startswith(("data:", path.as_uri()))] == []
