"""Bundles: what opens, and that everything broken or hostile is refused by name."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from emocaliber.runtime import bundle as bundle_module
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.errors import ArtifactError, InputError
from emocaliber.runtime.model import EmotionModel
from emocaliber.runtime.prepared import prepare

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit_manifest(folder: Path, edit: Edit) -> None:
    path = folder / "bundle.json"
    mapping = json.loads(path.read_text())
    edit(mapping)
    path.write_text(json.dumps(mapping))


def list_anew(*paths: Path) -> None:
    """Lets the manifest beside these files list them as they are now."""
    records = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size_bytes": path.stat().st_size}
        for path in paths
    }
    edit_manifest(paths[0].parent, lambda mapping: mapping["files"].update(records))


def pack(folder: Path, archive: Path, root: str = "") -> Path:
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, f"{root}{path.name}")
    return archive


def test_open_a_folder(tiny_bundle: Path) -> None:
    with Bundle.open(tiny_bundle) as bundle:
        assert bundle.manifest.name == "tiny-random"
        assert bundle.manifest.precision() == "int8"
        assert bundle.path("tokenizer.json") == tiny_bundle / "tokenizer.json"
        found = bundle.calibrator("emotion6-7", "reason", "int8")
        assert found is not None
        assert found.temperature == 1.7
        assert bundle.calibrator("emotion6-7", "direct", "fp32") is None
        assert bundle.manifest.taxonomy().name == "emotion6-7"
        assert bundle.manifest.taxonomy("webemo-7").labels[1] == "confusion"
        with pytest.raises(InputError, match="unknown taxonomy 'moods'"):
            bundle.manifest.taxonomy("moods")
        with pytest.raises(InputError, match="no precision 'q4'; it has: fp32, int8"):
            bundle.manifest.precision("q4")
        with pytest.raises(ArtifactError, match="lists no file"):
            bundle.path("../secret")
    assert (tiny_bundle / "bundle.json").is_file()


@pytest.mark.parametrize("root", ["", "./", "tiny/"])
def test_open_an_archive_and_clean_up(tiny_bundle: Path, tmp_path: Path, root: str) -> None:
    bundle = Bundle.open(pack(tiny_bundle, tmp_path / "b.tar", root))
    unpacked = bundle.path("tokenizer.json")
    assert unpacked.read_bytes() == (tiny_bundle / "tokenizer.json").read_bytes()
    bundle.close()
    assert not unpacked.exists()
    bundle.close()


def test_a_missing_embedded_bundle_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundle_module, "EMBEDDED_BUNDLE", tmp_path / "none")
    with pytest.raises(ArtifactError, match="no embedded bundle"):
        Bundle.open(None)


def test_the_embedded_bundle_is_the_default(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    monkeypatch.setattr(bundle_module, "EMBEDDED_BUNDLE", tiny_bundle)
    assert Bundle.open().manifest.name == "tiny-random"


def test_paths_that_are_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an address"):
        Bundle.open("https://host/owner/name")
    with pytest.raises(ArtifactError, match="does not exist"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(ArtifactError, match="is no bundle"):
        Bundle.open(tmp_path)
    (tmp_path / "b.zip").write_bytes(b"PK")
    with pytest.raises(ArtifactError, match=r"neither a folder nor a \.tar"):
        Bundle.open(tmp_path / "b.zip")


def test_a_changed_byte_is_refused(copy: Path) -> None:
    path = copy / "decoder_model_merged_int8.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"decoder_model_merged_int8\.onnx does not match its SHA-256"):
        Bundle.open(copy)
    Bundle.open(copy, verify=False)


def test_only_what_a_precision_reads_is_compared_where_one_is_named(copy: Path) -> None:
    for name in ("decoder_model_merged.onnx", "MODEL_CARD.md"):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
    Bundle.open(copy, precision="int8").close()
    Bundle.open(copy, precision=None).close()  # its default, int8
    EmotionModel.load(copy, engine="cpu", threads=1).close()
    with pytest.raises(ArtifactError, match=r"decoder_model_merged\.onnx does not match its SHA-256"):
        EmotionModel.load(copy, precision="fp32", engine="cpu", threads=1)
    with pytest.raises(ArtifactError, match=r"MODEL_CARD\.md does not match its SHA-256.*merged\.onnx does not match"):
        Bundle.open(copy)
    with pytest.raises(InputError, match="no precision 'q4'"):
        Bundle.open(copy, precision="q4")
    (copy / "decoder_model_merged.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"decoder_model_merged\.onnx is missing"):
        Bundle.open(copy, precision="int8")


@pytest.mark.parametrize("name", ["tokenizer.json", "calibration.json", "vision_encoder_int8.onnx"])
def test_what_a_precision_reads_is_compared(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} does not match its SHA-256"):
        Bundle.open(copy, precision="int8")


def with_weights_beside(folder: Path, graph: str) -> Path:
    """Moves the weights of a graph to a file beside it and returns that file."""
    weights = folder / f"{graph}_data"
    model = onnx.load(folder / graph)
    onnx.save(model, folder / graph, save_as_external_data=True, location=weights.name, size_threshold=1024)
    list_anew(folder / graph, weights)
    return weights


def test_weights_beside_a_graph_are_compared_before_an_engine_reads_them(copy: Path) -> None:
    graph = "decoder_model_merged_int8.onnx"
    weights = with_weights_beside(copy, graph)
    with Bundle.open(copy, precision="int8") as bundle:
        prepare(bundle, "int8")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    message = rf"bundle .*: {graph}_data does not match its SHA-256"
    with pytest.raises(ArtifactError, match=message):
        Bundle.open(copy)
    bundle = Bundle.open(copy, precision="int8")
    bundle.check_weights(["vision_encoder_int8.onnx"])
    for _ in range(2):
        with pytest.raises(ArtifactError, match=message):
            bundle.check_weights([graph])
    # What was prepared of them is read in their place.
    EmotionModel.load(copy, engine="cpu", threads=1).close()
    shutil.rmtree(copy.with_name(f"{copy.name}.onnxruntime"))
    with pytest.raises(ArtifactError, match=message):
        EmotionModel.load(copy, engine="cpu", threads=1)
    with pytest.raises(ArtifactError, match=message):
        prepare(bundle, "int8")


def test_missing_and_truncated_files_are_named_together(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "MODEL_CARD.md").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="has 5 bytes, expected") as caught:
        Bundle.open(copy, verify=False)
    assert "tokenizer.json is missing" in str(caught.value)


def test_links_are_refused(copy: Path, tmp_path: Path) -> None:
    real = copy / "tokenizer.json"
    real.rename(tmp_path / "elsewhere.json")
    real.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is a symbolic link"):
        Bundle.open(copy)


def test_a_linked_folder_inside_is_refused(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (copy / "tokenizer.json").rename(outside / "tokenizer.json")
    (copy / "inner").symlink_to(outside)

    def edit(mapping: dict[str, Any]) -> None:
        mapping["files"]["inner/tokenizer.json"] = mapping["files"]["tokenizer.json"]

    edit_manifest(copy, edit)
    with pytest.raises(ArtifactError, match=r"inner/tokenizer\.json is a symbolic link"):
        Bundle.open(copy)


def moved(mapping: dict[str, Any], name: str) -> None:
    mapping["files"][name] = mapping["files"]["MODEL_CARD.md"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(schema_version=2), "schema_version is 2, this version reads 1"),
        (lambda m: m.update(family="llava"), "family is 'llava'"),
        (lambda m: m.update(default_precision="q4"), "default_precision 'q4'"),
        (lambda m: m.update(default_taxonomy="moods"), "default_taxonomy 'moods'"),
        (lambda m: m["precisions"]["int8"].update(decoder="other.onnx"), r"files does not list 'other\.onnx'"),
        (lambda m: m["files"].pop("tokenizer.json"), r"files does not list 'tokenizer\.json'"),
        (lambda m: moved(m, "../MODEL_CARD.md"), "no name inside the bundle"),
        (lambda m: moved(m, "/etc/passwd"), "no name inside the bundle"),
        (lambda m: moved(m, "a/../../b"), "no name inside the bundle"),
        (lambda m: moved(m, "..\\b"), "no name inside the bundle"),
        (lambda m: moved(m, "C:b"), "no name inside the bundle"),
        (lambda m: m["files"]["tokenizer.json"].update(sha256="ab"), "expected 64 hexadecimal digits"),
        (lambda m: m["files"]["tokenizer.json"].update(size_bytes="7"), "size_bytes is '7', expected int"),
        (lambda m: m["taxonomies"].update({"sentiment-2": ["good", "bad"]}), "not those of that name"),
        (lambda m: m["taxonomies"].update({"mine": ["good", "<b>"]}), "taxonomy mine: label '<b>'"),
        (lambda m: m["decoder"].update(num_layers=0), "must be positive"),
        (lambda m: m.update(end_token_ids=[]), "end_token_ids is empty"),
        (lambda m: m.update(suppressed_token_ids=[100_000]), "outside the vocabulary"),
        (lambda m: m["image_block"].update(count=0), "at least one"),
        (lambda m: m["prompts"]["direct"].update(before_image="no labels"), "rendered prompt must hold"),
        (lambda m: m["preprocessing"].update(std=[0.0, 1.0, 1.0]), "std"),
        (lambda m: m.update(max_new_tokens=0), "max_new_tokens is 0"),
        (lambda m: m.update(license=" "), "license is empty"),
        (lambda m: m.update(provenance={"loss": float("nan")}), "holds NaN"),
    ],
)
def test_broken_manifests_are_refused(copy: Path, edit: Edit, message: str) -> None:
    edit_manifest(copy, edit)
    with pytest.raises(ArtifactError, match=message):
        Bundle.open(copy)


def test_all_type_faults_are_named_at_once(copy: Path) -> None:
    def edit(mapping: dict[str, Any]) -> None:
        del mapping["version"]
        mapping.update(max_new_tokens="many", surprise=1)

    edit_manifest(copy, edit)
    with pytest.raises(ArtifactError) as caught:
        Bundle.open(copy)
    for part in ("missing key version", "max_new_tokens is 'many', expected int", "unknown key surprise"):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_manifests_that_are_no_json_table_are_refused(copy: Path, content: bytes) -> None:
    (copy / "bundle.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"bundle\.json"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"fitted_on"', '"fitted_in"', "unknown key"),
        ('"anger"', '"rage"', "labels are not those"),
        ('"precision": "int8"', '"precision": "int4"', "no such precision"),
    ],
)
def test_calibrators_that_do_not_fit_the_bundle(copy: Path, old: str, new: str, message: str) -> None:
    path = copy / "calibration.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    list_anew(path)
    with pytest.raises(ArtifactError, match=message):
        Bundle.open(copy)


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (member("../evil", size=4), "leave the bundle's folder"),
        (member("/tmp/evil", size=4), "leave the bundle's folder"),
        (member("a/../../evil", size=4), "leave the bundle's folder"),
        (member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "not a plain file"),
        (member("hard", type=tarfile.LNKTYPE, linkname="bundle.json"), "not a plain file"),
        (member("device", type=tarfile.CHRTYPE), "not a plain file"),
        (member("bundle.json", size=4), "twice"),
    ],
)
def test_hostile_archives_are_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: tarfile.TarInfo, message: str
) -> None:
    archive = pack(tiny_bundle, tmp_path / "b.tar")
    with tarfile.open(archive, "a") as tar:
        tar.addfile(info, io.BytesIO(b"evil") if info.size else None)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(bundle_module.tempfile, "tempdir", str(scratch))
    with pytest.raises(ArtifactError, match=message):
        Bundle.open(archive)
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_truncated_and_foreign_archives_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    archive = pack(tiny_bundle, tmp_path / "b.tar")
    archive.write_bytes(archive.read_bytes()[:100_000])
    with pytest.raises(ArtifactError, match="tar"):
        Bundle.open(archive)
    archive.write_bytes(b"this is not an archive" * 100)
    with pytest.raises(ArtifactError, match="not a readable tar"):
        Bundle.open(archive)
