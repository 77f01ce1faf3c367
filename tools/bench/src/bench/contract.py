"""The contract of results.json: its JSON Schema, and the checks a schema cannot express — above all that each claim's
`holds` follows from its own numbers. Every problem is one line: JSON pointer, what is there, what would be right.
"""

import difflib
import json
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from bench.files import parse_json, pointer

HOLDS, FAILS, NOT_MEASURED = "holds", "fails", "not measured"

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


def read_results(path: Path, expected: Mapping[str, object]) -> tuple[dict[str, Any] | None, list[str]]:
    """Read and check a results.json; `expected` is what the run asked for (package, profile, seed).

    Returns:
        The document (None where it does not follow the contract at all) and its problems.
    """
    try:
        document = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None, ["results.json: was not written; want the file that --out DIR asks for"]
    except (OSError, ValueError) as error:
        return None, [f"results.json: {error}"]
    if problems := schema_problems(document, "results.schema.json"):
        return None, [f"results.json {problem}" for problem in problems]
    problems = [*_meaning(document), *_artifacts(document, path.parent), *_identity(document, expected)]
    return document, [f"results.json {problem}" for problem in problems]


def verdict(claim: Mapping[str, Any]) -> str:
    """'holds', 'fails' or 'not measured'."""
    if claim["measured"] is None:
        return NOT_MEASURED
    return HOLDS if claim["holds"] else FAILS


def follows(claim: Mapping[str, Any]) -> bool:
    """Whether the claim's numbers pass its test: on the whole interval where there is one.

    For an order that is the near end (`>`: the lower, `<`: the upper); `!=` wants the value outside the interval; `==`
    wants an interval that is the value, since an interval that merely contains it shows no equality.
    """
    test, value = OPERATORS[claim["test"]["op"]], claim["test"]["value"]
    if claim["measured"] is None:
        return False
    low, high = claim.get("ci") or (claim["measured"], claim["measured"])
    if claim["test"]["op"] == "!=":
        return not low <= value <= high
    return test(low, value) and test(high, value)


def schema_problems(document: Any, schema: str) -> list[str]:
    """What in a document is against one of the shipped schemas, in document order."""
    errors = sorted(validator(schema).iter_errors(document), key=lambda error: list(map(str, error.absolute_path)))
    return [problem for error in errors for problem in _explain(error)]


@cache
def validator(schema: str) -> Draft202012Validator:
    """The validator of a shipped schema."""
    return Draft202012Validator(json.loads(files("bench").joinpath(schema).read_text(encoding="utf-8")))


def _explain(error: ValidationError) -> Iterator[str]:
    where, rule = list(error.absolute_path), cast(dict[str, Any], error.schema)
    if error.validator == "required":
        for key in rule["required"]:
            if error.message.startswith(f"{key!r} "):  # jsonschema reports each missing key as an error of its own
                want = rule["properties"].get(key, {}).get("description", "a value")
                yield f"{pointer([*where, key])}: is missing; want {want}"
    elif error.validator == "additionalProperties":
        known = rule.get("properties", {})
        for key in cast(dict[str, Any], error.instance):
            if key not in known and not key.startswith("x-"):
                close = difflib.get_close_matches(key, known, n=1)
                hint = f'did you mean "{close[0]}"?' if close else "want a key of the contract"
                yield f'{pointer([*where, key])}: unknown key; {hint} (own keys start with "x-")'
    else:
        yield f"{pointer(where)}: is {_shown(error.instance)}; want {rule.get('description', error.message)}"


def _meaning(document: Mapping[str, Any]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for index, claim in enumerate(document["claims"]):
        at = f"/claims/{index}"
        first = seen.setdefault(claim["id"], index)
        if first != index:
            yield f'{at}/id: "{claim["id"]}" is also the id of /claims/{first}; want each id once'
        low, high = claim.get("ci") or (0, 0)
        if low > high:
            yield f"{at}/ci: is [{low}, {high}]; want [low, high] with low <= high"
        elif claim["measured"] is None:
            if claim["holds"]:
                yield f"{at}/holds: is true but measured is null; want false and a note that says why"
            elif not claim.get("note", "").strip():
                yield f"{at}/note: is empty but measured is null; want the reason why nothing was measured"
        elif claim["holds"] != follows(claim):
            shown = f"measured {claim['measured']}" + (f" with ci [{low}, {high}]" if claim.get("ci") else "")
            test = f"{claim['test']['op']} {claim['test']['value']}"
            right = "true" if follows(claim) else "false"
            yield f"{at}/holds: contradicts its own numbers: {shown} against {test}; want {right}"
    for kind in ("metrics", "comparisons"):
        names = [_name(item) for item in document[kind]]
        for index, name in enumerate(names):
            if name in names[:index]:
                first = names.index(name)
                yield f"/{kind}/{index}/name: {_shown(name[0])} is also that of /{kind}/{first}; want each once"


def _name(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["name"], item.get("peer_name", "")


def _artifacts(document: Mapping[str, Any], folder: Path) -> Iterator[str]:
    for index, artifact in enumerate(document["artifacts"]):
        at, path = f"/artifacts/{index}/path", artifact["path"]
        if problem := artifact_problem(path, folder):
            yield f"{at}: {_shown(path)} {problem}"


def artifact_problem(path: str, folder: Path) -> str:
    """What is wrong with an artifact's path; empty where it is a file inside the folder."""
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive or "\0" in path:
        return "is not relative; want a path inside the folder of results.json"
    try:
        target = (folder / path).resolve()
        if not target.is_relative_to(folder.resolve()):
            return "leads outside; want a path inside the folder of results.json"
        return "" if target.is_file() else "does not exist; want a file that the evaluation wrote"
    except (OSError, RuntimeError) as error:
        return f"cannot be followed ({error}); want a file that the evaluation wrote"


def _identity(document: Mapping[str, Any], expected: Mapping[str, object]) -> Iterator[str]:
    for key, want in expected.items():
        if document[key] != want:
            yield f"/{key}: is {_shown(document[key])}; want {_shown(want)}, what this run asked for"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
