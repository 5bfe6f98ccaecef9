"""Sets up this checkout and runs it. Needs Python 3.10 or newer, pip's index, and nothing else.

setup        make .venv with the versions of constraints.txt (every other command does it at first use)
quickstart   the whole pipeline, small, on this machine's processor
test         the tests; what follows is passed on to pytest
check        formatting, lint, types and import contracts
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
STAMP = ENVIRONMENT / "emocaliber-installed"
PHOTO = ROOT / "docs" / "photo.jpg"

CHECKS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("mypy",),
    ("lint-imports",),
)


class SetupError(Exception):
    """The environment cannot be made; the message says what to do."""


def main() -> int:
    """Runs the chosen command in the project's own environment and returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("setup", "quickstart", "test", "check"))
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on to quickstart and test")
    arguments = parser.parse_args()
    if arguments.rest and arguments.command in ("setup", "check"):
        parser.error(f"{arguments.command} takes no arguments, got: {' '.join(arguments.rest)}")
    try:
        ensure_environment()
        if arguments.command == "quickstart":
            return run("emocaliber", "quickstart", "--predict", str(PHOTO), *arguments.rest)
        if arguments.command == "test":
            # One process a core; two that each use all cores would wait for one another.
            return run("pytest", "-n", "auto", *arguments.rest, OMP_NUM_THREADS="1")
        return check() if arguments.command == "check" else 0
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dev.py: interrupted", file=sys.stderr)
        return 130


def check() -> int:
    """Runs every linter, also after one has failed; returns 0 if all of them are content."""
    failed = [" ".join(command) for command in CHECKS if run(*command) != 0]
    for command in failed:
        print(f"dev.py: failed: {command}", file=sys.stderr)
    return 1 if failed else 0


def ensure_environment() -> None:
    """Makes the environment, or brings it up to date, unless it is complete for exactly these files.

    The stamp is taken away before anything is touched and written last: what was interrupted is thrown away by the
    next call. It holds the checkout's path too, as a moved environment does not run.

    Raises:
        SetupError: If this Python or this checkout cannot be used, or pip fails.
    """
    if sys.version_info < (3, 10):
        raise SetupError(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    if not (ROOT / ".dev" / "emocaliber" / "runtime").is_dir():
        raise SetupError(
            "the links in .dev/emocaliber are missing or are plain files: use a git checkout; on Windows allow links "
            "(developer mode), then: git config core.symlinks true && git checkout -- .dev"
        )
    wanted, found = _fingerprint(), STAMP.read_text(encoding="utf-8") if STAMP.is_file() else ""
    usable = _program("python").exists() and found.partition("\n")[0] == str(ROOT)
    if usable and found == wanted:
        return
    STAMP.unlink(missing_ok=True)
    started = time.monotonic()
    if not usable:
        _say(f"setting up {ENVIRONMENT}: some minutes and 2 GB (more where pip brings the CUDA build of torch)")
        _create()
    else:
        _say("dependencies have changed, updating .venv")
    _install()
    STAMP.write_text(wanted, encoding="utf-8")
    _say(f"set up in {time.monotonic() - started:.0f} s")


def run(program: str, *words: str, **defaults: str) -> int:
    """Returns the exit status of a program of the environment, run from the checkout's root.

    Args:
        program: Its name.
        words: Its arguments.
        defaults: Environment variables, for those that are not set.
    """
    environment = {**defaults, **_clean_environment()}
    environment["PATH"] = f"{_program('python').parent}{os.pathsep}{environment.get('PATH', '')}"
    return subprocess.run([str(_program(program)), *words], cwd=ROOT, env=environment, check=False).returncode


def _fingerprint() -> str:
    """Returns the checkout's path and a hash of the files that say what is installed."""
    files = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        files.update((ROOT / name).read_bytes())
    return f"{ROOT}\n{files.hexdigest()}\n"


def _create() -> None:
    try:
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
    except subprocess.CalledProcessError as error:
        raise SetupError(
            f"{sys.executable} cannot make an environment with pip; on Debian and Ubuntu: apt install python3-venv"
        ) from error
    except OSError as error:
        raise SetupError(f"cannot make {ENVIRONMENT}: {error.strerror}") from error


def _install() -> None:
    pip = [str(_program("python")), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    if not sys.stderr.isatty():
        pip.append("--quiet")
    command = [*pip, "-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[dev]"]
    # Its report belongs to the set-up: standard output is the command's alone.
    done = subprocess.run(command, cwd=ROOT, env=_clean_environment(), stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise SetupError("pip could not install the dependencies, see above; the next call starts again from nothing")


def _clean_environment() -> dict[str, str]:
    """Returns the process environment without what would let modules from elsewhere in."""
    return {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _program(name: str) -> Path:
    return ENVIRONMENT / "Scripts" / f"{name}.exe" if os.name == "nt" else ENVIRONMENT / "bin" / name


def _say(message: str) -> None:
    print(f"dev.py: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
