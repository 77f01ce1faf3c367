"""Fake packages: a pyproject.toml, and a script as its command in a real but tiny environment."""

import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

PRELUDE = f"""#!{sys.executable}
import argparse, json, os, pathlib, subprocess, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("eval")
parser.add_argument("--profile"); parser.add_argument("--seed", type=int)
parser.add_argument("--out", type=pathlib.Path)
options = parser.parse_args()
def claim(id="one", measured=1.0, op=">", value=0.0, holds=True, **more):
    return {{"id": id, "statement": "It works.", "source": "arXiv:2503.04482, Fig. 1", "paper": "it works",
            "measured": measured, "test": {{"op": op, "value": value}}, "holds": holds, **more}}
def results(*claims, **more):
    document = {{"schema": "bench/1", "package": NAME, "version": VERSION, "profile": options.profile,
                "seed": options.seed, "claims": list(claims), "metrics": [], "comparisons": [], "artifacts": []}} | more
    (options.out / "results.json").write_text(json.dumps(document))
"""


class Repository:
    """A root with packages/ and a folder of environments beside it."""

    def __init__(self, root: Path) -> None:
        self.root, self.envs, self.out = root / "repo", root / "envs", root / "out"
        (self.root / "packages").mkdir(parents=True)
        self.envs.mkdir()
        self.result: subprocess.CompletedProcess[str] | None = None

    def add(self, name: str, body: str, version: str = "1.0", table: str = "") -> Path:
        """A package whose `eval` runs `body`; returns the script."""
        folder = self.root / "packages" / name
        folder.mkdir()
        pyproject = (
            f'[project]\nname = "{name}-dist"\n[tool.bench]\ncommand = "{name} eval"\nsummary = "about {name}"\n'
        )
        (folder / "pyproject.toml").write_text(pyproject + table)
        home = self.envs / name
        site = home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        (home / "bin").mkdir(parents=True)
        site.mkdir(parents=True)
        (home / "bin" / "python").symlink_to(sys.executable)
        (home / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).parent}\n")
        self.set_version(name, version)
        script = home / "bin" / name
        script.write_text(f"{PRELUDE}NAME, VERSION = {f'{name}-dist'!r}, {version!r}\n{textwrap.dedent(body)}")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return script

    def set_version(self, name: str, version: str) -> None:
        site = next((self.envs / name).glob("lib/*/site-packages"))
        for old in site.glob("*.dist-info"):
            old.rename(old.with_suffix(".gone"))
        info = site / f"{name}_dist-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: {version}\n")

    def run(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        where = ["--out", str(self.out), "--root", str(self.root), "--envs", str(self.envs)]
        return bench("run", *arguments, *(w for w in where), **more)

    def record(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.out / name / "run.json").read_text()))

    def read(self, name: str) -> str:
        return (self.out / name).read_text()


def bench(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    env = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False, **more)


EVIL = '<script>alert(1)</script> & "quotes" | `ticks`'
GOOD = f"""
evil = {EVIL!r}
import struct, zlib
def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
png = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 900, 300, 8, 0, 0, 0, 0))
png += chunk(b"IDAT", zlib.compress((b"\\0" + b"\\x80" * 900) * 300)) + chunk(b"IEND", b"")
(options.out / "curve.png").write_bytes(png)
(options.out / "table.csv").write_text("a,b")
print(evil)
results(
    claim(measured=0.31, ci=[0.22, 0.4], n=5, unit="nat", note=evil, paper_value=0.5),
    claim("small", 1e-6, "<", 1e-3), claim("exact", 0, "==", 0), claim("Averyveryverylongidentifier" * 6, 3, ">=", 2),
    metrics=[{{"name": evil, "value": 1234.5, "unit": "token/s", "better": "higher", "spread": 3.0}}],
    comparisons=[
        {{"name": "fit", "ours": 12.1, "peer": 40.2, "peer_name": "a peer 1.7", "unit": "ms", "better": "lower"}},
        {{"name": evil, "ours": 2.0, "peer": 40, "peer_name": "a peer 1.7", "unit": "x/s", "better": "higher"}}],
    artifacts=[{{"path": "curve.png", "title": evil}}, {{"path": "table.csv", "title": "a table"}}])
"""
