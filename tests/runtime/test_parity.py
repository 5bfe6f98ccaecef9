"""``parity.json`` as bundles hold it: read, shown and replaced without torch, old ones and none at all too."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from emocaliber.runtime import sealing
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.cli import main
from emocaliber.runtime.commands.proof import proof_lines
from emocaliber.runtime.errors import ArtifactError
from emocaliber.runtime.parity import (
    CPU,
    Estimate,
    LabelledFigures,
    LabelledParity,
    ParityReport,
    PrecisionParity,
    parity_of,
    read_parity,
)
from emocaliber.runtime.records import to_mapping
from emocaliber.runtime.sealing import replace_parity

RUN = PrecisionParity(
    max_logit_difference=0.25,
    largest_logit=9.0,
    greedy_tokens=198,
    greedy_mismatches=3,
    max_tree_difference=0.001,
    max_neighbour_effect=0.002,
    mean_score_drift=0.03,
    max_score_drift=0.04,
    kl_drift=0.005,
)
LABELLED = LabelledParity(
    taxonomy="emotion6-7",
    precision="int8",
    engine=CPU,
    n=164,
    source="samples.jsonl, test split",
    calibration=None,
    torch=LabelledFigures(accuracy=0.5, kl=0.4, ece=0.1, brier=0.2),
    graphs=LabelledFigures(accuracy=0.25, kl=0.375, ece=0.125, brier=0.25),
    difference={
        "accuracy": Estimate(estimate=-0.25, low=-0.375, high=-0.0001),
        "kl": Estimate(estimate=-0.025, low=-0.05, high=0.0125),
        "ece": Estimate(estimate=0.025, low=0.0, high=0.05),
        "brier": Estimate(estimate=0.05, low=0.01, high=0.09),
    },
    kl_drift=Estimate(estimate=0.006, low=0.004, high=0.009),
)
REPORT = ParityReport(
    images=3,
    image_sizes=((305, 485), (650, 375), (165, 155)),
    grids=((4, 7), (9, 5), (5, 6)),
    batch_sizes=(1, 2, 3),
    decode_steps=32,
    max_pixel_difference=0.0,
    precisions={"fp32": replace(RUN, greedy_mismatches=0), "int8": RUN},
    engines={"onnxruntime-cuda": {"int8": RUN}},
    absent={"tensorrt": "engine 'tensorrt' did not come up"},
    labelled=(LABELLED,),
    tolerances={"kl_drift": 0.001},
    forced=("int8 KL drift is 0.005 nat, at most 0.001",),
    made_with={"torch": "2.13.0"},
)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundles" / "bundle"))


def without_proof(bundle: Path) -> Path:
    """Takes ``parity.json`` out of a bundle, as of one that was never compared."""
    (bundle / "parity.json").unlink()
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    del manifest["files"]["parity.json"]
    (bundle / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    return bundle


def test_a_proof_is_sealed_and_comes_back(bundle: Path, tiny_bundle: Path) -> None:
    replace_parity(bundle, REPORT)
    with Bundle.open(bundle) as opened:
        assert "parity.json" in opened.manifest.files
        assert parity_of(opened) == REPORT
        assert len(opened.calibrators) == 2
    assert "and forced:** int8 KL drift is 0.005 nat" in (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    (bundle / "parity.json").write_text(json.dumps(to_mapping(replace(REPORT, forced=()))), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"parity\.json has \d+ bytes, expected"):
        Bundle.open(bundle)
    Bundle.open(tiny_bundle).close()


def test_inspect_shows_the_proof(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace_parity(bundle, REPORT)
    assert main(["bundle", "inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"] == to_mapping(REPORT)
    assert main(["bundle", "inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "proof: graphs against the model in torch (torch 2.13.0)",
        "FORCED, beyond the accepted drift: int8 KL drift is 0.005 nat, at most 0.001",
        "int8 onnxruntime-cpu 2.5e-01 195/198 1.0e-03 2.0e-03 3.0e-02 5.0e-03",
        "int8 onnxruntime-cuda 2.5e-01 195/198 1.0e-03 2.0e-03 3.0e-02 5.0e-03",
        "not run: engine 'tensorrt' did not come up",
        "164 images of emotion6-7 (samples.jsonl, test split), direct mode; in brackets graphs minus torch, 95 %:",
        "float32 torch 0.500 0.400 0.100 0.200",
        "int8 onnxruntime-cpu 0.250 [-0.375, +0.000] 0.375 [-0.050, +0.013] 0.125 [+0.000, +0.050] "
        "0.250 [+0.010, +0.090] 6.0e-03 [4.0e-03, 9.0e-03] raw",
    ):
        assert line in lines, line
    assert "4×7, 9×5, 5×6 visual tokens" in text
    assert max(map(len, text.splitlines())) < 170


@pytest.mark.parametrize(
    ("current", "words"), [(True, "raw calibrated"), (False, "calibrated, by calibrators it no longer has")]
)
def test_figures_of_calibrators_that_were_replaced_are_marked(
    bundle: Path, capsys: pytest.CaptureFixture[str], current: bool, words: str
) -> None:
    with Bundle.open(bundle) as opened:
        sha256 = opened.manifest.files["calibration.json"].sha256
    second = replace(LABELLED, calibration=sha256 if current else "0" * 64)
    replace_parity(bundle, replace(REPORT, labelled=(LABELLED, second)))
    assert main(["bundle", "inspect", str(bundle)]) == 0
    ends = " ".join(
        line.split("] ")[-1].strip() for line in capsys.readouterr().out.splitlines() if "6.0e-03 [" in line
    )
    assert ends.endswith(words)


def test_a_bundle_without_a_proof_opens_and_says_so(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_proof(bundle)
    assert main(["bundle", "verify", str(bundle)]) == 0
    capsys.readouterr()
    assert main(["bundle", "inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"] is None
    assert main(["bundle", "inspect", str(bundle)]) == 0
    assert "proof: none (no parity.json)" in capsys.readouterr().out


def test_a_proof_of_an_earlier_version_shows_what_it_has(tmp_path: Path) -> None:
    """Of before engines, other labels and probabilities were compared."""
    figures = {"max_logit_difference": 0.14, "largest_logit": 13.6, "greedy_tokens": 54, "greedy_mismatches": 2}
    figures |= {"max_tree_difference": 4e-7, "mean_score_drift": 0.015, "max_score_drift": 0.027}
    tolerances = {"preprocessing": 1e-5, "logits": 1e-3, "scores": 1e-3, "drift": 0.5}
    earlier = {"images": 3, "batch_sizes": [1, 2, 3], "decode_steps": 8, "max_pixel_difference": 0.0}
    earlier |= {"precisions": {"fp32": figures, "int8": figures}, "tolerances": tolerances}
    path = tmp_path / "parity.json"
    path.write_text(json.dumps(earlier), encoding="utf-8")
    report = read_parity(path)
    assert report.precisions["int8"].kl_drift is None
    with Bundle.open() as bundle:
        text = "\n".join(proof_lines(report, bundle.manifest))
    assert "fp32 (not shipped)" in text
    assert "8 decode steps" in text
    assert "52/54" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ('{"images": NaN}', "numbers must be finite"),
        ('{"images": 3}', "missing key precisions"),
        ("[]", "expected a table"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_file_that_is_no_proof(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "parity.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ArtifactError, match=message):
        read_parity(path)


def content_of(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


@contextmanager
def disk_that_is_full(after_bytes: int) -> Iterator[None]:
    """Lets no file grow beyond ``after_bytes``: the write fails as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 2000, 4000])
def test_a_full_disk_leaves_the_bundle_as_it_was(bundle: Path, size: int) -> None:
    before = content_of(bundle)
    with disk_that_is_full(size), pytest.raises(OSError, match="File too large"):
        replace_parity(bundle, REPORT)
    assert content_of(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
@pytest.mark.parametrize(
    ("module", "step"), [("sealing", "write_parity"), ("sealing", "model_card"), ("files", "_take_place")]
)
def test_a_kill_leaves_the_bundle_as_it_was(bundle: Path, module: str, step: str, tmp_path: Path) -> None:
    before = content_of(bundle)
    report = tmp_path / "report.json"
    report.write_text(json.dumps(to_mapping(REPORT)), encoding="utf-8")
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom emocaliber.runtime import files, parity, sealing\n"
        f"setattr({module}, {step!r}, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
        "sealing.replace_parity(Path(sys.argv[1]), parity.read_parity(Path(sys.argv[2])))\n"
    )
    root = Path(sealing.__file__).resolve().parents[1]
    killed = subprocess.run(
        [sys.executable, "-c", script, str(bundle), str(report)],
        env={"PYTHONPATH": str(root / ".dev"), "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    assert content_of(bundle) == before
    Bundle.open(bundle).close()
    assert all(path.name.startswith(".") for path in bundle.parent.iterdir() if path != bundle)
    replace_parity(bundle, REPORT)
    with Bundle.open(bundle) as opened:
        assert parity_of(opened) == REPORT
