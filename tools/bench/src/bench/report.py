"""What a run folder's reader gets: report.html and report.md for people, results.jsonl and junit.xml for machines."""

import base64
import html
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bench import __version__, plots, provenance, words
from bench.cappedlog import read_tail
from bench.contract import FAILS, HOLDS, NOT_MEASURED, artifact_problem, verdict
from bench.files import BenchError, write_atomic
from bench.runs import Outcome, Run, claims, gain, outcome, rows, version

IMAGE_BYTES = 3 * 2**20
ALL_IMAGES_BYTES = 24 * 2**20
IMAGES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".svg": "svg+xml"}
LOG_LINES = 80
ARXIV = re.compile(r"arXiv:\s?(\d{4}\.\d{4,5}(?:v\d+)?)")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Picture:
    """An artifact as shown: an image inside the page, or a link to the file with the reason why it is not inside."""

    title: str
    note: str
    path: str
    link: str
    data: str | None
    remark: str


@dataclass(frozen=True)
class Page:
    """One package's section: its run, judged, and what the templates need that is more than a lookup."""

    run: Run
    outcome: Outcome
    version: str
    claims: Sequence[tuple[Mapping[str, Any], str, plots.Interval | None]]
    comparisons: Sequence[tuple[Mapping[str, Any], float | None, plots.Ratio | None, str]]
    ratio_ticks: Sequence[plots.Mark]
    pictures: Sequence[Picture]
    log: str


def write_report(folder: Path, runs: Sequence[Run]) -> Path:
    """Write all four files into a run folder; returns the path of report.html."""
    pages = _pages(runs)
    context = {
        "pages": pages,
        "total": _total(pages),
        "facts": _facts(runs),
        "css": Markup(files("bench").joinpath("templates", "report.css").read_text(encoding="utf-8")),  # ours, no input
        "harness": __version__,
        "written": provenance.now(),
    }
    outputs: Mapping[str, Callable[[], str]] = {
        "report.html": lambda: _templates(autoescape=True).get_template("report.html.j2").render(context),
        "report.md": lambda: _templates(autoescape=False).get_template("report.md.j2").render(context),
        "results.jsonl": lambda: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(runs)),
        "junit.xml": lambda: junit(pages),
    }
    try:
        for name, content in outputs.items():
            write_atomic(folder / name, content())
    except OSError as error:
        raise BenchError(f"{folder}: cannot be written ({error.strerror}); make the folder writable") from None
    return folder / "report.html"


def junit(pages: Sequence[Page]) -> str:
    """JUnit's XML, a test case per claim: failed, skipped where not measured; an error where the evaluation broke."""
    root = ElementTree.Element("testsuites", name="bench")
    for page in pages:
        total = page.outcome
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_xml(page.run.name),
            tests=str(len(page.claims) or int(not total.valid)),
            failures=str(total.fails),
            errors=str(int(not total.valid)),
            skipped=str(total.not_measured),
            time=str(page.run.record.get("wall_s", 0)),
            timestamp=_xml(page.run.record["start"]),
        )
        for claim, word, _ in page.claims:
            case = ElementTree.SubElement(suite, "testcase", classname=_xml(page.run.name), name=_xml(claim["id"]))
            if word == FAILS:
                ElementTree.SubElement(case, "failure", message=_xml(figures(claim))).text = _xml(claim["statement"])
            elif word == NOT_MEASURED:
                ElementTree.SubElement(case, "skipped", message=_xml(claim.get("note", "")))
        if not total.valid:
            case = ElementTree.SubElement(suite, "testcase", classname=_xml(page.run.name), name="evaluation")
            error = ElementTree.SubElement(case, "error", message=_xml(page.run.problems[0]))
            error.text = _xml("\n".join(page.run.problems))
            ElementTree.SubElement(case, "system-out").text = _xml(page.log)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def figures(claim: Mapping[str, Any]) -> str:
    """A claim's figures in one line: 'measured 0.31 [0.22, 0.4] token/s, n = 5; test > 0'."""
    interval = f" [{words.number(claim['ci'][0])}, {words.number(claim['ci'][1])}]" if claim.get("ci") else ""
    unit = f" {claim['unit']}" if claim.get("unit") else ""
    count = f", n = {claim['n']}" if claim.get("n") else ""
    test = f"{claim['test']['op']} {words.number(claim['test']['value'])}"
    return f"measured {words.number(claim['measured'])}{interval}{unit}{count}; test {test}"


def _pages(runs: Sequence[Run]) -> list[Page]:
    room, pages = ALL_IMAGES_BYTES, []
    for run in runs:
        results = run.results if run.results and not run.problems else {}
        pictures = []
        for artifact in results.get("artifacts", ()):
            pictures.append(_picture(run, artifact, room))
            room -= len(pictures[-1].data or "")
        gains = [gain(item) for item in results.get("comparisons", ())]
        bars, ticks = plots.ratios(gains)
        compared = zip(results.get("comparisons", ()), gains, bars, strict=True)
        pages.append(
            Page(
                run=run,
                outcome=outcome(run),
                version=version(run),
                claims=[(claim, verdict(claim), plots.interval(claim)) for claim in claims(run)],
                comparisons=[(item, g, bar, words.comparison(item, g)) for item, g, bar in compared],
                ratio_ticks=ticks,
                pictures=pictures,
                log=_readable(read_tail(run.folder / "log.txt")),
            )
        )
    return pages


def _total(pages: Sequence[Page]) -> dict[str, int]:
    return {
        "holds": sum(page.outcome.holds for page in pages),
        "fails": sum(page.outcome.fails for page in pages),
        "not_measured": sum(page.outcome.not_measured for page in pages),
        "broken": sum(not page.outcome.valid for page in pages),
        "claims": sum(len(page.claims) for page in pages),
        "packages": len(pages),
    }


def _facts(runs: Sequence[Run]) -> dict[str, str]:
    """What the runs have in common, for the head of the report; several values where a folder was put together."""

    def several(values: Sequence[object]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))

    machines = [run.record.get("machine", {}) for run in runs]
    gits = [run.record.get("git", {}) for run in runs]
    facts = {
        "profile": several([run.record["profile"] for run in runs]),
        "seed": several([run.record["seed"] for run in runs]),
        "started": min(run.record["start"] for run in runs).replace("T", " ").replace("Z", " UTC"),
        "commit": several([g["commit"][:12] + " + changes" * bool(g.get("dirty")) for g in gits if g.get("commit")]),
        "machine": several([_machine(m) for m in machines if m.get("processor")]),
        "accelerator": several([name for m in machines for name in m.get("accelerators", ())]),
    }
    return {name: value for name, value in facts.items() if value}


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['processor']}, {machine.get('cores')} cores, {words.memory(machine.get('memory_bytes'))}"


def _picture(run: Run, artifact: Mapping[str, Any], room: int) -> Picture:
    path = str(artifact["path"])
    kind = IMAGES.get(Path(path).suffix.lower())
    data, remark = None, ""
    # Checked again here: between the contract's check and this read the folder may have changed.
    if problem := artifact_problem(path, run.folder):
        remark = problem
    else:
        length = (run.folder / path).stat().st_size
        remark = words.size(length)
        if kind and length > IMAGE_BYTES:
            remark += f", not embedded: above {words.size(IMAGE_BYTES)}"
        elif kind and length * 4 // 3 > room:
            remark += f", not embedded: the report already holds {words.size(ALL_IMAGES_BYTES)} of images"
        elif kind:
            data = f"data:image/{kind};base64,{base64.b64encode((run.folder / path).read_bytes()).decode()}"
    return Picture(artifact["title"], artifact.get("note", ""), path, f"{run.name}/{path}", data, remark)


def _readable(text: str) -> str:
    """A log's last lines without colours, and of each overdrawn progress line only its last state."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in ESCAPES.sub("", text).split("\n")]
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in "\n".join(lines[-LOG_LINES:])).strip("\n")


def _xml(text: object) -> str:
    return NOT_XML.sub("�", str(text))


def _source(text: str) -> Markup:
    """A claim's source, escaped, with its arXiv number as a link."""
    return Markup(ARXIV.sub(r'<a href="https://arxiv.org/abs/\1" rel="noreferrer">\g<0></a>', str(escape(text))))


def _md(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    flat = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", flat)


def _templates(autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("bench"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": words.number,
        "seconds": words.seconds,
        "memory": words.memory,
        "size": words.size,
        "source": _source,
        "md": _md,
    }
    environment.globals |= {"HOLDS": HOLDS, "FAILS": FAILS, "NOT_MEASURED": NOT_MEASURED, "figures": figures}
    return environment
