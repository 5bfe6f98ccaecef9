"""``emocaliber batch``: what it reads besides folders, and what it writes besides one JSON Lines file."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from emocaliber.runtime.cli import main
from emocaliber.runtime.commands import batch
from emocaliber.runtime.commands.tables import write_table

COLUMNS = [
    "image", "taxonomy", "mode", "label", "confidence", "distribution", "prediction_set", "coverage",
    "verbalized_confidence", "reasoning", "calibrated", "bundle", "timing_ms", "error_type", "error_message",
]  # fmt: skip


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, the third of which is broken."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(b"broken" if number == 2 else png(number))
    return folder


def run(tiny_bundle: Path, out: Path, *words: str | Path) -> int:
    return main(["batch", *map(str, words), "--out", str(out), "--bundle", str(tiny_bundle)])


def read(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "timing_ms"} for line in lines]


def test_members_of_tars_are_read_in_place_and_in_their_order(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "1.tar").write_bytes(b"")
    write_tar(tmp_path / "1.tar", {"b/7.png": png(7), "b/7.json": b'{"label": 3}', "b/7.cls": b"3"})
    write_tar(tmp_path / "0.tar", {"z.png": png(0), "a.PNG": png(1), "./dir.png/x": b"", "bad.jpg": b"\xff\xd8\xff"})
    (tmp_path / "7.png").write_bytes(png(7))
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out.jsonl"
    assert run(tiny_bundle, out, tmp_path / "*.tar", tmp_path / "7.png") == 1
    lines = read(out)
    names = [f"{tmp_path}/0.tar/{name}" for name in ("z.png", "a.PNG", "bad.jpg")]
    assert [line["image"] for line in lines] == [*names, f"{tmp_path}/1.tar/b/7.png", f"{tmp_path}/7.png"]
    assert ["error" in line for line in lines] == [False, False, True, False, False]
    assert lines[2]["error"]["message"].startswith(f"image '{tmp_path}/0.tar/bad.jpg': the given bytes is not an image")
    assert lines[3]["distribution"] == lines[4]["distribution"]
    assert lines[0]["distribution"] != lines[1]["distribution"]
    assert sorted(tmp_path.iterdir()) == sorted([*before, out])


def test_a_tar_that_cannot_be_read_in_place_is_refused(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_tar(tmp_path / "whole.tar", {"a.png": png(0), "b.png": png(1)}).read_bytes()
    second = whole.index(b"b.png")
    (tmp_path / "cut.tar").write_bytes(whole[: second + 600])
    (tmp_path / "header.tar").write_bytes(whole[: second + 100])
    (tmp_path / "border.tar").write_bytes(whole[:second])
    (tmp_path / "torn.tar").write_bytes(whole[:second] + b"X" * 512 + whole[second + 512 :])
    (tmp_path / "joined.tar").write_bytes(whole * 2)
    (tmp_path / "junk.tar").write_bytes(b"junk" * 500)
    write_tar(tmp_path / "texts.tar", {"a.txt": b"text"})
    write_tar(tmp_path / "zipped.tar.gz", {"a.png": png(0)}, "w:gz")
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    for name, message in (
        ("cut.tar", "cannot be read in place as a tar (unexpected end of data); make it again"),
        ("header.tar", f"at byte {second} its end mark is missing, or something follows it"),
        ("border.tar", f"at byte {second} its end mark is missing"),
        ("torn.tar", f"at byte {second} its end mark is missing"),
        ("joined.tar", "its end mark is missing, or something follows it"),
        ("junk.tar", "cannot be read in place as a tar"),
        ("texts.tar", "holds no images"),
        ("zipped.tar.gz", "decompress it first"),
        ("link.tar", "a.png in"),
    ):
        assert run(tiny_bundle, tmp_path / "out.jsonl", tmp_path / name) == 1
        error = capsys.readouterr().err
        assert message in error
        assert name in error
    assert not list(tmp_path.glob("out*"))


def test_a_tar_that_shrinks_meanwhile_gives_error_lines(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = write_tar(tmp_path / "a.tar", {"a.png": png(0), "b.png": png(1)})
    load = batch.load_model

    def load_model(arguments: Any) -> Any:
        tar.write_bytes(tar.read_bytes()[:1500])
        return load(arguments)

    monkeypatch.setattr(batch, "load_model", load_model)
    assert run(tiny_bundle, tmp_path / "out.jsonl", tar) == 1
    first, second = read(tmp_path / "out.jsonl")
    assert "label" in first
    assert "the tar ends before" in second["error"]["message"]


def test_parquet_has_typed_columns_of_the_same_content(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    assert run(tiny_bundle, tmp_path / "out.parquet", folder, "--mode", "reason") == 1
    assert run(tiny_bundle, tmp_path / "out.jsonl", folder, "--mode", "reason") == 1
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == COLUMNS
    kinds = {name: str(table.schema.field(name).type) for name in COLUMNS}
    assert kinds["confidence"] == kinds["coverage"] == kinds["verbalized_confidence"] == "double"
    assert kinds["calibrated"] == "bool"
    assert kinds["distribution"].startswith("map<string, double")
    lines = read(tmp_path / "out.jsonl")
    for row, line in zip(table.to_pylist(maps_as_pydicts="strict"), lines, strict=True):
        assert row.pop("timing_ms") is None if "error" in line else row.pop("timing_ms")["total"] > 0
        error = line.pop("error", {"type": None, "message": None})
        expected = {**dict.fromkeys(COLUMNS[:12]), **line}
        if "bundle" in line:
            expected["bundle"] = {**line["bundle"], "source": None}
        assert row == {**expected, "error_type": error["type"], "error_message": error["message"]}


def test_parquet_says_where_a_bundle_was_fetched(tmp_path: Path) -> None:
    fetched = {"name": "a", "version": "1", "precision": "int8", "engine": "cpu", "source": "hf://me/it@0123"}
    line = json.dumps({"image": "x.png", "bundle": fetched}).encode() + b"\n"
    write_table(io.BytesIO(line), tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist()[0]["bundle"] == fetched


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes only there")
def test_a_file_name_that_is_no_text_stays_readable(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "caf\udce9.png").write_bytes(png(0))
    (tmp_path / "images" / "d\udce9.png").write_bytes(b"")
    for suffix in ("csv", "parquet"):
        assert run(tiny_bundle, tmp_path / f"out.{suffix}", tmp_path / "images") == 1
    assert r"caf\udce9.png" in (tmp_path / "out.csv").read_text(encoding="utf-8")
    first, second = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert first["image"].endswith(r"caf\udce9.png")
    assert r"d\udce9.png" in second["error_message"]


def test_parquet_without_pyarrow_is_refused_before_any_work(
    tiny_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(tiny_bundle, tmp_path / "out.parquet", folder) == 1
    assert "pip install 'emocaliber[parquet]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_shards_together_are_the_whole(
    tiny_bundle: Path, folder: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out.{suffix}"
    assert run(tiny_bundle, out, folder, "--shard-size", "2") == 1
    assert "1 of 5 images could not be read" in capsys.readouterr().err
    shards = sorted(tmp_path.glob("out*"))
    assert [shard.name for shard in shards] == [f"out-0000{n}-of-00003.{suffix}" for n in range(3)]
    names = []
    for shard in shards:
        if suffix == "parquet":
            names += pq.read_table(shard)["image"].to_pylist()
        elif suffix == "csv":
            rows = shard.read_text(encoding="utf-8").splitlines()
            assert rows[0] == ",".join(COLUMNS)
            names += [row.partition(",")[0] for row in rows[1:]]
        else:
            names += [line["image"] for line in read(shard)]
    assert names == [str(folder / f"{number}.png") for number in range(5)]
    assert run(tiny_bundle, out, folder, "--shard-size", "2", "--resume") == 0
    assert "already complete" in capsys.readouterr().err
    assert run(tiny_bundle, out, folder, "--shard-size", "3") == 1
    assert f"out-00000-of-00003.{suffix} exists" in capsys.readouterr().err


def test_ray_that_is_not_there_is_named(
    tiny_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(tiny_bundle, tmp_path / "out.jsonl", folder, "--ray", "2") == 1
    assert "--ray 2 needs Ray" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
