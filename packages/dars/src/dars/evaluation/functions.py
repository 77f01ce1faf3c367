"""Functions of Python sources and their mutants: what verifiers and critics are tried on."""

from __future__ import annotations

import functools
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ..bench.mutations import mutate, mutations
from ..patches import is_test
from ..reviewer.functions import named_functions


@dataclass(frozen=True)
class Function:
    """A function as it was written, without its indentation, and what single faults make of it."""

    package: str
    source: str
    mutants: tuple[str, ...]


def with_mutants(package: str, source: str, most: int, length: int, rng: np.random.Generator) -> Function:
    """A function with at most so many of its mutants, drawn at random from those of at most ``length`` bytes."""
    made = {mutate(source, mutation) for mutation in mutations(source) if mutation.function} - {source}
    fitting = sorted(text for text in made if len(text.encode()) <= length)
    chosen = rng.permutation(len(fitting))[:most]
    return Function(package, source, tuple(fitting[place] for place in chosen))


# --- what is installed ------------------------------------------------------------------------------------------------


def installed_packages() -> dict[str, list[Path]]:
    """Name -> sources without tests, of the standard library's packages and of those beside this one."""
    found: dict[str, list[Path]] = {}
    roots = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    for root in sorted(roots):
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root).parts
            if not {"site-packages", "dist-packages"}.intersection(inside) and not is_test("/".join(inside)):
                found.setdefault(inside[0].removesuffix(".py"), []).append(path)
    return found


def split(names: Iterable[str], share: float, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Names of the packages to train on, and of those held out: at least one."""
    order = [str(name) for name in rng.permutation(sorted(names))]
    held = max(1, round(share * len(order)))
    return order[held:], order[:held]


def collect(
    packages: Mapping[str, Sequence[Path]],
    most: int,
    mutants: tuple[int, int],
    length: int,
    rng: np.random.Generator,
    workers: int = 1,
    without: Iterable[str] = (),
) -> list[Function]:
    """Different functions of at most ``length`` bytes from files in random order, until there are enough.

    Parameters
    ----------
    mutants : how many a function has at least, and how many are kept.
    workers : processes that read and mutate; the result is the same for any number.
    without : texts of functions that are left out: packages carry copies of each other's.
    """
    files = [(name, path) for name in sorted(packages) for path in packages[name]]
    seeds = rng.integers(2**63, size=len(files))
    jobs = [(*files[i], int(seeds[i])) for i in rng.permutation(len(files))]
    seen, found = set(without), []
    for function in _functions(jobs, mutants, length, workers):
        if function.source not in seen:
            seen.add(function.source)
            found.append(function)
            if len(found) == most:
                break
    return found


def _functions(
    jobs: Sequence[tuple[str, Path, int]], mutants: tuple[int, int], length: int, workers: int
) -> Iterator[Function]:
    work = functools.partial(_of_file, mutants=mutants, length=length)
    if workers == 1:
        for job in jobs:
            yield from work(job)
        return
    with get_context("spawn").Pool(workers) as pool:
        for found in pool.imap(work, jobs, chunksize=8):
            yield from found


def _of_file(job: tuple[str, Path, int], mutants: tuple[int, int], length: int) -> list[Function]:
    package, path, seed = job
    rng = np.random.default_rng(seed)
    try:
        texts = list(named_functions(path.read_text(encoding="utf-8")).values())
    except (SyntaxError, ValueError, RecursionError):
        return []  # a template, of another version or another encoding: others are plenty
    fitting = (text for text in texts if len(text.encode()) <= length)
    made = [with_mutants(package, text, mutants[1], length, rng) for text in fitting]
    return [function for function in made if len(function.mutants) >= mutants[0]]
