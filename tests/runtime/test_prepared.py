"""Prepared graphs give the same numbers, are taken only where they fit, and damaged ones are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emocaliber.runtime import EmotionModel, prepared
from emocaliber.runtime.bundle import EMBEDDED_BUNDLE, Bundle
from emocaliber.runtime.cli import main
from emocaliber.runtime.errors import ArtifactError, BackendError, ConfigError
from emocaliber.runtime.prepared import RECORD_NAME, PreparedKey, find_prepared, prepare

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(EMBEDDED_BUNDLE, tmp_path / "nano")


def prepared_folder(bundle: Path) -> Path:
    (found,) = bundle.with_name(f"{bundle.name}.onnxruntime").iterdir()
    return found


def distribution(bundle: Path) -> dict[str, float]:
    return dict(EmotionModel.load(bundle, precision="int8", engine="cpu").predict(IMAGE).distribution)


def test_numbers_are_the_same_and_the_bundles_graphs_are_not_needed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = distribution(folder)
    command = ["bundle", "prepare", str(folder), "--precision", "int8"]
    assert main(command) == 0
    assert "int8: prepared in" in capsys.readouterr().out
    assert main(command) == 0
    assert "int8: up to date" in capsys.readouterr().out
    assert main(["bundle", "verify", str(folder)]) == 0
    read = []
    session = prepared.onnxruntime.InferenceSession

    def watched(path: str, **options: object) -> object:
        read.append(Path(path))
        return session(path, **options)

    monkeypatch.setattr(prepared.onnxruntime, "InferenceSession", watched)
    assert distribution(folder) == expected
    assert [path.parent.parent.name for path in read].count("nano.onnxruntime") == 2


def test_what_does_not_fit_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bundle.open(folder) as bundle:
        made = prepare(bundle, "int8")
        assert find_prepared(bundle, "int8") == made.folder
        assert find_prepared(bundle, "int8-fp32") is None
        with monkeypatch.context() as changed:
            changed.setattr(prepared, "processor_flags", lambda: frozenset({"other"}))
            assert find_prepared(bundle, "int8") is None
        changes = {"onnxruntime": "1.0", "graphs_sha256": "0" * 64}
        key = PreparedKey.of(bundle, "int8")
        assert len({key.digest, *(replace(key, **{name: value}).digest for name, value in changes.items())}) == 3


def test_damaged_graphs_are_refused_and_made_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Bundle.open(folder) as bundle:
        prepare(bundle, "int8")
        graph = prepared_folder(folder) / "decoder.onnx"
        content = graph.read_bytes()
        graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=r"does not match its SHA-256.*bundle prepare .*--precision int8"):
            find_prepared(bundle, "int8")
    assert main(["bundle", "prepare", str(folder), "--precision", "int8"]) == 0
    assert "prepared in" in capsys.readouterr().out
    distribution(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2, this version reads 1"),
        ({"files": {}}, "expected decoder.onnx and vision_encoder.onnx"),
        ({"key": None}, "key"),
    ],
)
def test_a_changed_record_is_refused(folder: Path, change: dict[str, object], message: str) -> None:
    with Bundle.open(folder) as bundle:
        record = prepare(bundle, "int8").folder / RECORD_NAME
        record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
        with pytest.raises(ArtifactError, match=message):
            find_prepared(bundle, "int8")


def test_a_tar_has_no_place_for_them(folder: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "nano"), "tar", folder)
    with Bundle.open(archive) as bundle:
        assert find_prepared(bundle, "int8") is None
        with pytest.raises(ConfigError, match="stand beside a folder"):
            prepare(bundle, "int8")


def test_a_failure_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared.built, "write_record", full)
    with Bundle.open(folder) as bundle:
        with pytest.raises(BackendError, match=r"cannot be written.*No space left on device"):
            prepare(bundle, "int8")
        assert list(folder.with_name("nano.onnxruntime").iterdir()) == []
