"""Sets up this checkout and runs it: ``python3 dev.py quickstart``, ``python3 dev.py test``, ``python3 dev.py check``.

Needs Python 3.10 or newer and nothing else. Makes ``.venv`` with the locked versions of ``constraints.txt`` at first
use, and again whenever they change.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
BIN = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
STAMP = ENVIRONMENT / "emocaliber-installed"
PHOTO = ROOT / "docs" / "photo.jpg"

CHECKS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("mypy",),
    ("lint-imports",),
)


def main() -> int:
    """Runs the chosen command in the project's own environment and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("setup", "quickstart", "test", "check"))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on to the command")
    arguments = parser.parse_args()
    if sys.version_info < (3, 10):
        print("Python 3.10 or newer is needed, this is " + sys.version.split()[0], file=sys.stderr)
        return 2
    ensure_environment()
    if arguments.command == "quickstart":
        return run("emocaliber", "quickstart", "--predict", str(PHOTO), *arguments.rest)
    if arguments.command == "test":
        return run("pytest", *arguments.rest)
    if arguments.command == "check":
        return max(run(*check) for check in CHECKS)
    return 0


def ensure_environment() -> None:
    """Installs the package with its development extra, unless that was done for exactly these versions."""
    wanted = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        wanted.update((ROOT / name).read_bytes())
    if STAMP.is_file() and STAMP.read_text() == wanted.hexdigest():
        return
    print(f"setting up {ENVIRONMENT} (a few minutes, about 2 GB)", file=sys.stderr)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip = [str(BIN / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[dev]"], check=True)
    STAMP.write_text(wanted.hexdigest())


def run(program: str, *words: str) -> int:
    """Returns the exit status of a program of the environment, run from the checkout's root."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    return subprocess.run([str(BIN / program), *words], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
