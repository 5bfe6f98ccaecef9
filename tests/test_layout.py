"""The shape of the repository: the same layers everywhere, readable files, imports in one direction only."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
LINKS = ROOT / ".dev" / "emocaliber"
LAYERS = ("distill", "evaluate", "export", "recipes", "runtime", "train")
WITHOUT_CODE = {"recipes"}
BESIDE = {"benchmarks", "tests"}
"""Folders with code that is not installed."""
MAX_LINES = 450

pytestmark = pytest.mark.skipif(not LINKS.is_dir(), reason="a source distribution has no links")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def python_files() -> list[Path]:
    folders = [*LAYERS, *BESIDE]
    return [ROOT / "dev.py", *sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]


def test_every_list_of_layers_is_the_same(project: dict[str, Any]) -> None:
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    sdist = project["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert wheel["sources"] == {layer: f"emocaliber/{layer}" for layer in LAYERS}
    assert sorted(wheel["only-include"]) == list(LAYERS)
    assert set(LAYERS) <= set(sdist["only-include"])
    assert sorted(link.name for link in LINKS.iterdir()) == list(LAYERS)
    for layer in LAYERS:
        assert (LINKS / layer).readlink() == Path("..", "..", layer)


def test_folders_with_code_or_recipes_are_layers() -> None:
    found = {path.parent.name for pattern in ("*/*.py", "*/py.typed") for path in ROOT.glob(pattern)}
    found |= {path.parents[1].name for path in ROOT.glob("*/*/recipe.toml")}
    assert {name for name in found if not name.startswith(".")} - BESIDE == set(LAYERS)


def test_import_contract_names_every_layer_with_code(project: dict[str, Any]) -> None:
    contracts = {contract["id"]: contract for contract in project["tool"]["importlinter"]["contracts"]}
    named = [name for row in contracts["layers"]["layers"] for name in re.split(r"\s*\|\s*", row)]
    assert sorted(named) == sorted(set(LAYERS) - WITHOUT_CODE)
    assert contracts["layers"]["exhaustive"] is True


def test_imports_go_in_one_direction() -> None:
    # In a process of its own: the linter sets up logging when it is imported.
    script = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    )
    environment = {**os.environ, "PYTHONPATH": str(LINKS.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_is_typed(layer: str) -> None:
    assert (ROOT / layer / "py.typed").is_file()


def test_package_is_a_namespace() -> None:
    assert not [path.name for path in LINKS.iterdir() if not path.is_symlink()]


@pytest.mark.parametrize("layer", ["evaluate", "export", "runtime"])
def test_exported_names_are_sorted_and_there(layer: str) -> None:
    module = importlib.import_module(f"emocaliber.{layer}")
    names = list(module.__all__)
    assert names == sorted(set(names))
    assert [name for name in names if getattr(module, name, None) is None] == []


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert len(lengths) > 50
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MAX_LINES} == {}


def test_sources_are_python_3_10(project: dict[str, Any]) -> None:
    assert project["project"]["requires-python"] == ">=3.10"
    for path in python_files():
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 10))


def test_version_is_the_newest_of_the_changelog(project: dict[str, Any]) -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    entries = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (Unreleased|\d{4}-\d\d-\d\d)", heading) for heading in headings]
    assert headings
    assert [heading for heading, entry in zip(headings, entries, strict=True) if entry is None] == []
    found = [(entry[1], entry[2]) for entry in entries if entry]
    assert found[0][0] == project["project"]["version"]
    assert [date for _, date in found[1:] if date == "Unreleased"] == []
    versions = [Version(version) for version, _ in found]
    assert versions == sorted(set(versions), reverse=True)


def test_every_development_requirement_is_locked_within_its_range(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {pin.name: pin for pin in (Requirement(line) for line in lines if line and not line.startswith("#"))}
    assert all(re.fullmatch(r"==[^*+,]+", str(pin.specifier)) for pin in pins.values())
    extras = project["project"]["optional-dependencies"]
    rows = [row for name in ("evaluate", "train", "export", "dev") for row in extras[name]]
    needed = [Requirement(row) for row in [*project["project"]["dependencies"], *rows]]
    for requirement in needed:
        if requirement.name == "emocaliber" or (requirement.marker and not requirement.marker.evaluate()):
            continue
        pinned = str(pins[requirement.name].specifier).removeprefix("==")
        assert requirement.specifier.contains(pinned), f"{requirement} is locked at {pinned}"


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = re.findall(
        r"^\$ (python3 dev\.py \w+)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert commands == ["python3 dev.py quickstart", "python3 dev.py test"]
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.split(" ||")[0] == commands[1]]


def test_links_in_the_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    assert len(documents) > 1
    targets = [
        (document, target)
        for document in documents
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
        if "://" not in target
    ]
    assert [
        f"{document.name}: {target}" for document, target in targets if not (document.parent / target).exists()
    ] == []
