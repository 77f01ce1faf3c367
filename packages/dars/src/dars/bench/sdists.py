"""Packages from PyPI to put faults into: pinned by version and hash, unpacked so that nothing has to be installed."""

from __future__ import annotations

import hashlib
import io
import math
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..env.scan import remove
from ..errors import TaskError
from .build import build
from .execute import Worker
from .tasks import MutTask

CPU_S = 5  # of one run: these suites take up to three seconds
MOST_BYTES = 64 << 20


class Sdist(NamedTuple):
    """A release; ``left_out`` are files that need what is not there (other packages, network, a repository)."""

    version: str
    sha256: str
    left_out: tuple[str, ...] = ()


SDISTS = {
    "boltons": Sdist("26.2.0", "d39cfd15c1a1c3bd4d705c82252fa9edb8e4f5e8cc039f8e39afac7b1b47e92c"),
    "cachetools": Sdist("8.0.1", "deb1d376d4d28c2f33f3e3058043b005e0af75c35c094bd54053e27d2906ad95"),
    "inflection": Sdist("0.5.1", "1a29730d366e996aaacffb2f1f1cb9593dc38e2ddd30c91250c6dde09ea9b417"),
    # Its settings ask for pytest-cov.
    "parse": Sdist("1.22.4", "706d458feed5a81b02768d3156e8070baf6cee7d150a3a3c0cd43101a875c3b5", ("pyproject.toml",)),
    "schema": Sdist("0.7.8", "e86cc08edd6fe6e2522648f4e47e3a31920a76e82cce8937535422e310862ab5"),
    "semver": Sdist("3.1.1", "149b26cabada6f63212f97e94505d21578cb1d280cf714827f328d5e70765fea"),
    "tabulate": Sdist("0.10.0", "e2cfde8f79420f6deeffdeda9aaec3b6bc5abce947655d17ac662b126e48a60d"),
    "toolz": Sdist("1.2.0", "9667a038e9d6ecba37995e26cb2f59ec6420b6ad8dd9677de59db9b956b08490"),
}

# Whose suites take under a second and can lose single tests: those of cachetools are inherited, and boltons and
# tabulate need minutes.
QUICK = ("toolz", "inflection", "parse", "schema", "semver")  # first those that yield little


def fetch(name: str, folder: Path) -> Path:
    """Download a release with pip, check its hash, unpack it below a folder; return where it lies.

    What was fetched before is used again.

    Raises
    ------
    TaskError
        It is not one of SDISTS; pip cannot get it, or got another file.
    """
    if name not in SDISTS:
        raise TaskError(f"there is no pinned release of {name!r}; there are {', '.join(SDISTS)}")
    pinned = SDISTS[name]
    target = folder / name
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        wanted = Path(temporary, "wanted.txt")
        wanted.write_text(f"{name}=={pinned.version} --hash=sha256:{pinned.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, "--require-hashes"]
        done = subprocess.run(
            [*command, "-d", temporary, "-r", str(wanted)], capture_output=True, text=True, check=False
        )
        found = list(Path(temporary).glob("*.tar.gz"))
        if done.returncode or len(found) != 1:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise TaskError(f"pip cannot get {name} {pinned.version}: {said}")
        unpacked = Path(temporary, "unpacked")
        unpack(found[0].read_bytes(), pinned.sha256, unpacked)
        for path in pinned.left_out:
            remove(unpacked / path)
        unpacked.replace(target)
    return target


def unpack(data: bytes, sha256: str, folder: Path) -> None:
    """Unpack a source distribution; what lies in src/ comes to the top, where imports find it.

    Links and whatever is neither file nor folder are left out.

    Raises
    ------
    TaskError
        The hash is another, a path leads outside, or it is no archive of a reasonable size.
    """
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        raise TaskError(f"the archive's sha256 is {got}, not {sha256}")
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            members = [member for member in archive.getmembers() if member.isfile()]
            if sum(member.size for member in members) > MOST_BYTES:
                raise TaskError(f"the archive holds more than {MOST_BYTES >> 20} MiB")
            for member in members:
                parts = list(PurePosixPath(member.name).parts[1:])  # without the folder around all
                if not parts or member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
                    raise TaskError(f"the archive holds {member.name!r}, which leads outside")
                if parts[0] == "src" and len(parts) > 2:
                    del parts[0]
                content = archive.extractfile(member)
                assert content is not None
                there = folder.joinpath(*parts)
                there.parent.mkdir(parents=True, exist_ok=True)
                there.write_bytes(content.read())
    except tarfile.TarError as error:
        raise TaskError(f"this is no archive: {error}") from None


def full_tasks(
    folder: Path, seed: int, n: int = 16, most: int = 40, names: Sequence[str] = QUICK
) -> list[tuple[MutTask, Path]]:
    """Tasks of packages from PyPI, each with the folder of its package.

    Parameters
    ----------
    folder : where the packages are fetched to.
    n : how many; what a package does not yield is left to those after it.
    most : mutations that are tried for each package.
    """
    found: list[tuple[MutTask, Path]] = []
    for i, name in enumerate(names):
        part = math.ceil((n - len(found)) / (len(names) - i))
        if part:
            source = fetch(name, folder)
            with Worker(cpu_s=CPU_S) as worker:
                found += [(task, source) for task in build(source, part, seed, most=most, worker=worker)]
    return found
