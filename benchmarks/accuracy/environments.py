"""A virtual environment for every method, made from the first lines of its file."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # as PEP 723 gives it
OURS = ("stage-sc", "torch")


@dataclass(frozen=True)
class Requirements:
    """What a method's file says about itself."""

    dependencies: tuple[str, ...] = ()
    own: bool = False
    """Whether it has an environment of its own."""
    without_dependencies: tuple[str, ...] = ()
    panels: str = "common"
    needs: str | None = None

    @property
    def packages(self) -> list[str]:
        """Names of the dependencies, without versions and extras; those of stage_sc without an environment."""
        return (
            [re.split(r"[^\w.-]", one)[0] for one in self.dependencies + self.without_dependencies]
            if self.own
            else list(OURS)
        )


def requirements(method: Path) -> Requirements:
    """Read the metadata (PEP 723) of a method's file."""
    block = BLOCK.search(method.read_text())
    if block is None:
        return Requirements()
    lines = (line[2:] if line.startswith("# ") else line[1:] for line in block["content"].splitlines(keepends=True))
    table = tomllib.loads("".join(lines))
    own = "dependencies" in table
    more = table.get("tool", {}).get("benchmark", {})
    alone = tuple(more.pop("without-dependencies", ()))
    return Requirements(tuple(table.get("dependencies", ())), own, alone, **more)


def interpreter(method: Path, folder: Path) -> Path:
    """Return the interpreter of a method, whose environment is made in `folder` when it is needed first.

    Methods with the same dependencies share one. What an interrupted installation left is made anew.
    """
    needed = requirements(method)
    if not needed.own:
        return Path(sys.executable)
    packages = [sorted(needed.dependencies), sorted(needed.without_dependencies)]
    digest = hashlib.sha256(json.dumps(packages).encode()).hexdigest()[:12]
    environment = folder.absolute() / digest
    python, complete = environment / "bin" / "python", environment / "complete"
    if not complete.exists():
        shutil.rmtree(environment, ignore_errors=True)
        venv.create(environment, with_pip=True)
        for wanted, how in zip(packages, ([], ["--no-deps"]), strict=True):
            if wanted:
                install(python, how + wanted)
        complete.write_text(json.dumps(packages))
    return python


def install(python: Path, wanted: list[str]) -> None:
    """Install packages by pip."""
    command = [str(python), "-m", "pip", "install", "--quiet", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip could not install {wanted}: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """Return the last line that says something: of a traceback, the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no message"
