"""What users install: one distribution, one top-level name, a light core."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_string
from pathlib import Path

import pytest
from hatchling.build import build_sdist, build_wheel
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "runtime" / "bundles" / "default"
CORE = {"numpy", "onnxruntime", "pillow", "tokenizers", "tqdm"}
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "datasets",
    "onnx",
    "onnxscript",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "pandas",
}
MAX_INSTALLED_MB = 250
LAYERS = ("distill", "evaluate", "export", "recipes", "runtime", "train")


@contextmanager
def working_folder(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with working_folder(ROOT):
        return folder / build_wheel(str(folder))


@pytest.fixture(scope="module")
def members(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def metadata_file(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        member = next(member for member in archive.namelist() if member.endswith(f".dist-info/{name}"))
        return archive.read(member).decode()


def test_the_only_top_level_name_is_emocaliber(members: list[str]) -> None:
    strange = [name for name in members if not re.match(r"emocaliber/|emocaliber-[\d.]+\.dist-info/", name)]
    assert strange == []
    # A namespace: an __init__ here would hide what other distributions add.
    assert "emocaliber/__init__.py" not in members
    assert {name.split("/")[1] for name in members if name.startswith("emocaliber/")} == set(LAYERS)


def test_nothing_of_the_workshop_is_inside(members: list[str]) -> None:
    junk = re.compile(
        r"(^|/)(tests?|\.[^/]+|__pycache__|runs)/|\.pyc$|(^|/)(test_[^/]+|conftest)\.py$|\.safetensors$|\.pt$"
    )
    assert [name for name in members if junk.search(name)] == []


def test_data_files_are_inside(members: list[str]) -> None:
    wanted = [f"emocaliber/{layer}/py.typed" for layer in LAYERS]
    wanted += [f"emocaliber/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("recipes/*/*.toml")]
    wanted += [f"emocaliber/{path.relative_to(ROOT).as_posix()}" for path in BUNDLE.rglob("*") if path.is_file()]
    wanted += [f"emocaliber/runtime/serve/page/{name}" for name in ("app.js", "icon.svg", "index.html", "style.css")]
    wanted += ["emocaliber/evaluate/report.css", "emocaliber/recipes/quickstart/recipe.toml"]
    assert sorted(set(wanted) - set(members)) == []
    assert [name for name in members if name.endswith(".dist-info/licenses/LICENSE")]


def test_core_requirements_are_light(wheel: Path) -> None:
    metadata = message_from_string(metadata_file(wheel, "METADATA"))
    requirements = [Requirement(row) for row in metadata.get_all("Requires-Dist", [])]
    core = {row.name for row in requirements if row.marker is None or row.marker.evaluate({"extra": ""})}
    assert core == CORE
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"


def test_console_command(wheel: Path) -> None:
    assert metadata_file(wheel, "entry_points.txt").split() == [
        "[console_scripts]",
        "emocaliber",
        "=",
        "emocaliber.runtime.cli:main",
    ]


def test_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with working_folder(ROOT):
        name = build_sdist(str(tmp_path))
    with tarfile.open(tmp_path / name) as archive:
        for member in archive.getmembers():
            assert member.isfile()
            assert member.name.startswith(name.removesuffix(".tar.gz") + "/")
        archive.extractall(tmp_path, filter="data")
    with working_folder(tmp_path / name.removesuffix(".tar.gz")):
        again = tmp_path / build_wheel(str(tmp_path))
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {item.filename: item.CRC for item in first.infolist()} == {
            item.filename: item.CRC for item in second.infolist()
        }


# From here on: the wheel in an environment of its own. It takes pip, its index and about a minute.


class Installed:
    """An environment that holds the wheel and what it requires, without extras."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder
        self.programs = folder / "environment" / ("Scripts" if os.name == "nt" else "bin")
        subprocess.run([sys.executable, "-m", "venv", str(folder / "environment")], check=True)
        self.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
        self.site = Path(self.run("python", "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip())

    def run(self, program: str, *words: str) -> str:
        """Returns the standard output of a program that must end well."""
        environment = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [str(self.programs / program), *words],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(900)
class TestInstalled:
    def test_light(self, installed: Installed) -> None:
        rows = json.loads(installed.run("python", "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
        names = {row["name"].lower() for row in rows}
        assert names >= CORE | {"emocaliber"}
        assert names & HEAVY == set()
        tools = re.compile(r"(pip|setuptools|pkg_resources|_distutils_hack|wheel)(-|$|\.)")
        files = [
            path
            for path in installed.site.rglob("*")
            if path.is_file() and not tools.match(path.relative_to(installed.site).parts[0])
        ]
        size_mb = sum(path.stat().st_size for path in files) / 1e6
        assert 50 < size_mb <= MAX_INSTALLED_MB, f"{size_mb:.1f} MB"

    def test_brings_no_other_name(self, installed: Installed) -> None:
        names = [*LAYERS, "tests", "dev"]
        script = f"from importlib.util import find_spec; print([name for name in {names!r} if find_spec(name)])"
        assert installed.run("python", "-c", script) == "[]\n"

    def test_finds_its_recipes_without_torch(self, installed: Installed) -> None:
        script = "from emocaliber.train.recipe import *; print(load_recipe(shipped_recipe('quickstart')).name)"
        assert installed.run("python", "-c", script) == "quickstart\n"

    @pytest.mark.parametrize("bundle", ["embedded", "given"])
    def test_predicts(self, installed: Installed, wheel: Path, tiny_bundle: Path, bundle: str) -> None:
        if bundle == "embedded" and not BUNDLE.is_dir():
            pytest.skip("this checkout has no embedded bundle")
        options = [] if bundle == "embedded" else ["--bundle", str(tiny_bundle)]
        version = message_from_string(metadata_file(wheel, "METADATA"))["Version"]
        assert installed.run("emocaliber", "--version") == f"emocaliber {version}\n"
        assert json.loads(installed.run("emocaliber", "doctor", "--json", *options))["faults"] == []
        photo = ROOT / "docs" / "photo.jpg"
        prediction = json.loads(installed.run("emocaliber", "predict", str(photo), "--json", *options))
        assert sum(prediction["distribution"].values()) == pytest.approx(1.0, abs=1e-6)
        assert prediction["label"] in prediction["distribution"]
