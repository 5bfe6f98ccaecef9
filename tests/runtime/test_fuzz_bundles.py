"""Bundles that someone damaged or forged: `ArtifactError` before anything of them runs, or a bundle that works."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emocaliber.runtime import Bundle, EmotionModel
from emocaliber.runtime import bundle as bundle_module
from emocaliber.runtime.archive import collisions, is_safe_name, unpack
from emocaliber.runtime.errors import ArtifactError, BackendError, EmoCaliberError
from emocaliber.runtime.manifest import parse_manifest
from emocaliber.runtime.onnx_header import read_header

GRAPH = "decoder_model_merged_int8.onnx"
QUICK = settings(max_examples=60, derandomize=True, deadline=None, database=None)


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "bundle.json"
    mapping = json.loads(path.read_text(encoding="utf-8"))
    edit(mapping)
    path.write_text(json.dumps(mapping), encoding="utf-8")


def put(folder: Path, name: str, content: bytes) -> None:
    """Puts a file into the bundle as a forger would: with a hash that is right."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    record = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    edit_manifest(folder, lambda mapping: mapping["files"].update({name: record}))


def open_or_refuse(folder: Path) -> bool:
    try:
        Bundle.open(folder, verify=False).close()
    except ArtifactError:
        return False
    return True


def flips(content: bytes, places: Iterator[int] | range) -> Iterator[bytes]:
    generator = random.Random(0)  # noqa: S311 - no secret
    for place in places:
        yield content[:place] + bytes([content[place] ^ generator.randrange(1, 256)]) + content[place + 1 :]


@pytest.mark.parametrize("name", ["bundle.json", "calibration.json"])
def test_a_byte_changed_in_the_tables(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    places = iter(random.Random(1).sample(range(len(content)), 80))  # noqa: S311
    assert sum(refused_tables(copy, name, content, places)) > 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bundle.json", "calibration.json"])
def test_every_byte_changed_in_the_tables(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    assert sum(refused_tables(copy, name, content, range(len(content)))) > len(content) // 2


def refused_tables(copy: Path, name: str, content: bytes, places: Iterator[int] | range) -> Iterator[bool]:
    for broken in flips(content, places):
        (copy / name).write_bytes(broken)  # same size: found by content, as hashes are not asked
        yield not open_or_refuse(copy)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@QUICK
@given(st.data())
def test_any_value_in_any_place_of_the_tables(tiny_bundle: Path, data: st.DataObject) -> None:
    from emocaliber.runtime.calibration import CalibrationFile
    from emocaliber.runtime.records import from_mapping

    name = data.draw(st.sampled_from(["bundle.json", "calibration.json"]))
    table = json.loads((tiny_bundle / name).read_text(encoding="utf-8"))
    holder = table
    while True:
        keys = sorted(holder) if isinstance(holder, dict) else range(len(holder))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(holder[key], (dict, list)) or not holder[key] or data.draw(st.booleans()):
            break
        holder = holder[key]
    holder[key] = data.draw(JSON)
    try:
        if name == "bundle.json":
            parse_manifest(json.dumps(table))
        else:
            from_mapping(CalibrationFile, table, name)
    except EmoCaliberError as error:
        assert len(str(error)) < 20_000  # noqa: PT017 - both ends are right


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"temperature": 1.7', '"temperature": NaN'),
        ('"temperature": 1.7', '"temperature": 1e999'),
        ('"temperature": 1.7', '"temperature": -1'),
        ('"temperature": 1.7', f'"temperature": 1{"0" * 400}'),
        ('"schema_version": 1', '"schema_version": 3'),
        ('"schema_version": 1', '"schema_version": true'),
        ('"temperature": 1.7', '"temperature": 1.7, "temperature": 1.8'),
        ('"temperature": 1.7', '"temperature": ' + "[" * 50_000),
        ("0.93\n", "0.93, 0.99\n"),
    ],
    ids=["nan", "infinity", "negative", "400-digits", "future", "boolean", "double", "deep", "one-too-many"],
)
def test_calibrators_that_make_no_sense(copy: Path, old: str, new: str) -> None:
    text = (copy / "calibration.json").read_text(encoding="utf-8")
    assert old in text
    put(copy, "calibration.json", text.replace(old, new).encode())
    with pytest.raises(ArtifactError, match=r"calibration\.json"):
        Bundle.open(copy)


@pytest.mark.parametrize("version", [0, 2, 10**400, "1", None, 1.5])
def test_schema_versions_of_another_time(copy: Path, version: object) -> None:
    edit_manifest(copy, lambda mapping: mapping.update(schema_version=version))
    with pytest.raises(ArtifactError, match="this version reads 1"):
        Bundle.open(copy)


def test_faults_by_the_hundred_thousand_are_one_short_message(copy: Path) -> None:
    edit_manifest(copy, lambda mapping: mapping.update({f"k{number}": 0 for number in range(20_000)}))
    with pytest.raises(ArtifactError, match="and 19980 more") as caught:
        Bundle.open(copy)
    assert len(str(caught.value)) < 20_000


def test_a_key_twice_among_many_is_found_in_linear_time() -> None:
    keys = ",".join(f'"k{number}":0' for number in range(50_000))
    with pytest.raises(ArtifactError, match="the key 'k49999' twice"):
        parse_manifest(f'{{{keys},"k49999":0}}')


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m["decoder"].update(num_layers=3), r"8 inputs, which does not fit 3 layers"),
        (lambda m: m["decoder"].update(num_layers=10**9), "does not fit 1000000000 layers"),
        (lambda m: m["decoder"].update(head_dim=17), r"past_key_values\.0\.key is \(any, 1, any, 16\)"),
        (lambda m: m["decoder"].update(num_kv_heads=2), r"the manifest says \(any, 2, any, 16\)"),
        (lambda m: m["decoder"].update(hidden_size=64), r"the manifest says \(any, any, 64\)"),
        (lambda m: m["decoder"].update(vocab_size=417), r"logits is \(any, any, 416\)"),
        (lambda m: m["preprocessing"].update(tile_size=64), r"pixel_values is \(any, 3, 32, 32\)"),
        (lambda m: m["image_block"].update(count=10**9), "image_features"),
        (lambda m: m["precisions"]["int8"].update(decoder="vision_encoder_int8.onnx"), "does not fit 2 layers"),
        (lambda m: m["precisions"]["int8"].update(vision_encoder="embed_tokens.onnx"), "pixel_values is missing"),
        (lambda m: m["precisions"]["int8"].update(vision_encoder="tokenizer.json"), "is no ONNX file"),
        (lambda m: m.update(name="a\x1b[2Jb"), "holds control characters"),
    ],
)  # fmt: skip
def test_graphs_that_do_not_fit_the_manifest(
    copy: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(copy, edit)
    with pytest.raises(ArtifactError, match=message):
        Bundle.open(copy)


def test_swapped_files(copy: Path) -> None:
    first, second = copy / "vision_encoder_int8.onnx", copy / GRAPH
    first.rename(copy / "x")
    second.rename(first)
    (copy / "x").rename(second)
    with pytest.raises(ArtifactError, match=r"vision_encoder_int8\.onnx has \d+ bytes, expected"):
        Bundle.open(copy)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "weights.bin", "a/../../secret", ".", ""])
@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_weights_outside_of_the_manifest(copy: Path, location: str, place: str) -> None:
    put(copy, GRAPH, with_external_weights((copy / GRAPH).read_bytes(), location, place))
    (copy / "weights.bin").write_bytes(bytes(1 << 16))
    (copy.parent / "secret").write_bytes(bytes(1 << 16))
    with pytest.raises(ArtifactError, match=r"keeps weights in .*, which files does not list"):
        EmotionModel.load(copy)


def test_weights_in_a_listed_file_are_allowed(copy: Path) -> None:
    put(copy, GRAPH, with_external_weights((copy / GRAPH).read_bytes(), "weights.bin", "initializer"))
    put(copy, "weights.bin", bytes(1 << 16))
    Bundle.open(copy).close()


def with_external_weights(graph: bytes, location: str, place: str) -> bytes:
    import onnx
    from onnx import helper

    model = onnx.load_from_string(graph)
    tensor = helper.make_tensor("outside", onnx.TensorProto.FLOAT, [4], [0.0] * 4)
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    if place == "initializer":
        model.graph.initializer.append(tensor)
    else:
        model.graph.node.append(helper.make_node("Constant", [], ["outside"], value=tensor))
    return bytes(model.SerializeToString())


def test_headers_are_those_of_onnx(tiny_bundle: Path) -> None:
    import onnx

    for path in tiny_bundle.glob("*.onnx"):
        graph, header = onnx.load(path).graph, read_header(path)
        for ports, found in ((graph.input, header.inputs), (graph.output, header.outputs)):
            expected = {
                port.name: tuple(
                    size.dim_value if size.HasField("dim_value") else None for size in port.type.tensor_type.shape.dim
                )
                for port in ports
            }
            assert found == expected
        assert header.external == frozenset()


def test_a_byte_changed_in_a_graph_with_a_right_hash(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Weights may change unseen: who forges the hash forges the model. What must not be is a crash, or a word on stdout.
    content = (copy / GRAPH).read_bytes()
    structure = [*random.Random(2).sample(range(len(content)), 12), 0, 1, 2, 5, 9, 20, 40, 139, 150, 300]  # noqa: S311
    for broken in flips(content, iter(structure)):
        put(copy, GRAPH, broken)
        try:
            with EmotionModel.load(copy, engine="cpu", threads=1) as model:
                model.predict(np.zeros((8, 8, 3), np.uint8))
        except (ArtifactError, BackendError):
            continue
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"\x00", b"{}", b'{"model": 3}', b"\xff" * 100, b"[" * 100_000])
def test_tokenizers_that_are_none(copy: Path, content: bytes) -> None:
    put(copy, "tokenizer.json", content)
    with pytest.raises(ArtifactError, match="tokenizer"):
        EmotionModel.load(copy, engine="cpu")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a//b", "a/", "/a", "a/../b", "a\\b", "C:a", "a\0b", "a\nb", "nul", "AUX.onnx", "com1.txt", "a ",
     "a.", "x/lpt9", "a?b", 'a"b', "a|b"],
)  # fmt: skip
def test_names_that_are_no_plain_file_on_some_system(name: str) -> None:
    assert not is_safe_name(name)


@pytest.mark.parametrize("name", ["a b", "ü/模型.onnx", ".hidden", "console.txt", "com10", "a" * 200])
def test_names_that_are_plain_files_everywhere(name: str) -> None:
    assert is_safe_name(name)


def test_names_that_differ_in_case_or_unicode_form_only(copy: Path) -> None:
    assert collisions(["a/B", "a/b", "é", "e\u0301", "c"]) == [("a/B", "a/b"), ("é", "e\u0301")]
    content = (copy / "MODEL_CARD.md").read_bytes()
    put(copy, "Model_Card.md", content)
    with pytest.raises(ArtifactError, match="are one file on systems that take no notice of case"):
        Bundle.open(copy)


def header(name: str, size: int, kind: bytes, size_field: bytes | None = None) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if size_field is not None:
        block[124:136] = size_field
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


LONG_NAMES = (header("././@LongLink", 4, b"L") + b"aaa\0".ljust(512, b"\0")) * 3000


@pytest.mark.parametrize(
    "content",
    [LONG_NAMES, header("a", 0, b"0", b"\xff" * 11 + b"\0"), header("a", 0, b"0", b"\x80" + b"\x7f" * 11),
     header("a", 10**9, b"0"), header("a", 0, b"S")],
    ids=["headers-of-headers", "negative-size", "huge-size", "size-beyond-the-end", "sparse"],
)  # fmt: skip
def test_forged_archive_headers(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(content + bytes(1024))
    with pytest.raises(ArtifactError):
        unpack(tmp_path / "b.tar", tmp_path / "out")


def test_damaged_archives_leave_nothing(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path in sorted(tiny_bundle.iterdir()):
            tar.add(path, path.name)
    content, scratch = stream.getvalue(), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(bundle_module.tempfile, "tempdir", str(scratch))
    members = [place for place in range(0, len(content) - 512, 512) if content[place + 257 : place + 262] == b"ustar"]
    generator = random.Random(3)  # noqa: S311
    for broken in flips(content, iter([generator.choice(members) + generator.randrange(512) for _ in range(60)])):
        (tmp_path / "b.tar").write_bytes(broken)
        try:
            Bundle.open(tmp_path / "b.tar").close()
        except ArtifactError:
            continue
        finally:
            assert list(scratch.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "scratch"]
