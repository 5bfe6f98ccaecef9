"""ONNX Runtime's CUDA provider against torch on one GPU: the stages of `runtime.py`, the same random weights.

    python benchmarks/gpu.py --work runs/benchmark --out benchmarks/gpu.md

Needs onnxruntime-gpu instead of onnxruntime, and a CUDA build of torch. Both sides multiply float32 as float32: TF32 is
off. Exits with 1, the table written, if this package's scores are further from torch's than `TOLERANCES` allow.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from cold import ColdStart, cold_starts, first_forward, first_prediction
from competitors import SCORES, Stage, Work, engine_stages, torch_model
from numpy.typing import NDArray

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.engines import load_engine
from emocaliber.runtime.errors import EmoCaliberError
from emocaliber.runtime.onnx_runtime import onnxruntime
from runtime import STAGES, cells, made_bundle, made_work, measured, opened, parser_of, processor, table, versions

TORCH = {
    "torch fp32": torch.float32, "torch bf16": torch.bfloat16, "torch fp16": torch.float16,
    "torch fp16 compiled": torch.float16,
}  # fmt: skip
TOLERANCES = {"fp32": 0.01, "fp16": 0.2}
"""Nats between a label's score here and in torch fp32; random weights say nothing of what fewer bits change."""
OURS = (*TOLERANCES, "int8", "int4")
COMPETITORS = (*TORCH, *OURS)
PROVIDERS = {"cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"], "cpu": ["CPUExecutionProvider"]}
LISTED = 6
"""Kinds of operators that are named."""


def main(words: Sequence[str] | None = None) -> int:
    """Measures, writes the tables, and returns the exit status."""
    parser = parser_of(__doc__, COMPETITORS)
    parser.add_argument("--repeats", type=int, default=30, help="most timed rounds of a stage (default: 30)")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes of each (default: 3; 0: none)")
    parser.add_argument("--threads", type=int, default=4, help="of the processor (default: 4)")
    parser.add_argument("--device", choices=PROVIDERS, default="cuda", help="cpu tries the script without a GPU")
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False  # of products it is off by default
    bundle, weights = made_bundle(arguments.work, arguments.shape)
    work = made_work(bundle)
    wanted = [name for name in COMPETITORS if name in ["torch fp32", *(arguments.competitor or COMPETITORS)]]
    running, refused = started(wanted, bundle, weights, work, arguments)
    times = measured(running, arguments.repeats)
    apart = differences(running)
    found = {name: placements(bundle, name, arguments.device) for name in running if name in OURS}
    cold = cold_starts(
        cold_codes(list(running), bundle, weights, arguments), arguments.starts, gpu=arguments.device == "cuda"
    )
    text = "\n".join(report(arguments, work, times, apart, found, cold, refused)) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0 if agrees(apart) else 1


def started(
    names: Sequence[str], bundle: Path, weights: Path, work: Work, arguments: argparse.Namespace
) -> tuple[dict[str, dict[str, Stage]], dict[str, str]]:
    """Returns the stages of those whose every stage runs, and why the others do not."""
    running, refused = {}, {}
    for name in names:
        try:
            stages = stages_of(name, bundle, weights, work, arguments)
            for stage in stages.values():
                stage()
        except (EmoCaliberError, RuntimeError) as error:
            refused[name] = str(error).splitlines()[0]
        else:
            running[name] = stages
    return running, refused


def stages_of(name: str, bundle: Path, weights: Path, work: Work, arguments: argparse.Namespace) -> dict[str, Stage]:
    """Returns the stages of one of `COMPETITORS`."""
    if name in TORCH:
        model = opened(weights, TORCH[name]).to(arguments.device)
        return torch_model(model, work, compiled=name.endswith("compiled"))
    found = Bundle.open(bundle, verify=False)
    engine = load_engine(found, name, arguments.device, threads=arguments.threads)
    return engine_stages(found, name, engine, work)


def differences(running: dict[str, dict[str, Stage]]) -> dict[str, float]:
    """Returns the largest distance of each one's scores from torch fp32's, in nats, the best label's taken as 0."""
    scores = {name: _centred(np.asarray(stages[SCORES]())) for name, stages in running.items() if SCORES in stages}
    return {name: float(np.abs(found - scores["torch fp32"]).max()) for name, found in scores.items()}


def _centred(scores: NDArray[Any]) -> NDArray[Any]:
    return scores - scores.max()


def agrees(apart: dict[str, float]) -> bool:
    """Returns whether the scores of this package are as close to torch's as `TOLERANCES` ask; NaN is not."""
    return all(apart[name] <= most for name, most in TOLERANCES.items() if name in apart)


def placements(bundle: Path, precision: str, device: str) -> dict[str, Counter[str]]:
    """Returns how many operators of each kind each provider got, of the vision encoder and the decoder together."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    counts: dict[str, Counter[str]] = {}
    with Bundle.open(bundle, verify=False) as found:
        files = found.manifest.precisions[precision]
        for name in (files.vision_encoder, files.decoder):
            session = onnxruntime.InferenceSession(str(found.path(name)), options, providers=PROVIDERS[device])
            for part in session.get_provider_graph_assignment_info():
                counts.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return counts


def cold_codes(names: Sequence[str], bundle: Path, weights: Path, arguments: argparse.Namespace) -> dict[str, str]:
    """Returns what fresh processes run, by name; compiling is no start."""
    codes = {}
    for name in names:
        if name in OURS:
            codes[name] = first_prediction(bundle, name, arguments.device, arguments.threads)
        elif not name.endswith("compiled"):
            kind = str(TORCH[name]).removeprefix("torch.")
            codes[name] = first_forward(weights, kind, arguments.device, arguments.threads)
    return codes


def report(
    arguments: argparse.Namespace, work: Work, times: dict[str, dict[str, list[float]]], apart: dict[str, float],
    found: dict[str, dict[str, Counter[str]]], cold: dict[str, ColdStart], refused: dict[str, str],
) -> list[str]:  # fmt: skip
    """Returns the lines of the Markdown report."""
    medians = {name: {stage: median(values) for stage, values in row.items()} for name, row in times.items()}
    chosen = "".join(f' --competitor "{name}"' for name in arguments.competitor or ())
    allowed = ", ".join(f"{name} {most:g}" for name, most in TOLERANCES.items())
    lines = [
        f"# Runtime on a GPU: shape {arguments.shape}, random weights",
        "",
        f"{device_name(arguments.device)}, beside {processor()[0]}, {arguments.threads} threads, {date.today()}; "
        f"{versions()}. Prompt of {len(work.prompt)} tokens, {work.prompt.count(work.image_token)} of them visual. "
        "Torch's stages begin and end on the GPU, its scores of 8 labels are one padded batch, and its time from image "
        "to distribution is one forward pass of pixels that are ready; this package's begin and end in the memory of "
        "the processor but for keys and values, it scores eight labels and resizes the image, too. TF32 is off. "
        f"Medians of at most {arguments.repeats} rounds, all competitors in turn in one process. Made by `python "
        f"benchmarks/gpu.py --work DIR --shape {arguments.shape} --repeats {arguments.repeats} --starts "
        f"{arguments.starts} --threads {arguments.threads} --device {arguments.device}{chosen}`.",
        "",
    ]
    lines += table("ms", medians, {said: cells(medians, stage, ".2f") for stage, said in STAGES.items()})
    for base in ("torch fp32", "torch fp16", "torch fp16 compiled"):
        if base in medians:
            lines += ["", f"Times faster than {base}:", "", *table("", medians, faster(medians, base))]
    lines += ["", f"Scores of 8 labels, largest distance from torch fp32 (most allowed: {allowed}):", ""]
    lines += ["| | nats |", "|---|---:|", *(f"| {name} | {value:.2g} |" for name, value in apart.items())]
    lines += ["", "Operators of vision encoder and decoder, and who runs them:", "", "| | provider | operators | |"]
    lines += ["|---|---|---:|---|"]
    for name, providers in found.items():
        for provider, kinds in providers.items():
            most = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(LISTED))
            lines.append(f"| {name} | {provider} | {sum(kinds.values())} | {most} |")
    if cold:
        lines += ["", "| a fresh process | s | peak MiB | MiB of the GPU |", "|---|---:|---:|---:|"]
    for name, start in cold.items():
        lines.append(f"| {name} | {start.seconds:.2f} | {start.peak_mib:.0f} | {start.device_mib:.0f} |")
    if refused:
        lines += ["", "Not run:", "", *(f"- {name}: {why}" for name, why in refused.items())]
    return lines


def faster(medians: dict[str, dict[str, float]], base: str) -> dict[str, list[str]]:
    """Returns rows of how many times faster than one of them each is, where that one has the stage."""
    return {
        said: cells(medians, stage, ".2f", over=medians[base][stage])
        for stage, said in STAGES.items()
        if stage in medians[base]
    }


def device_name(device: str) -> str:
    """Returns the card's name and its driver, and the CUDA that torch was built with."""
    if device == "cpu":
        return "No GPU"
    query = ("nvidia-smi", "--id=0", "--query-gpu=name,driver_version", "--format=csv,noheader")
    name, driver = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().split(", ")
    return f"{name} (driver {driver}, CUDA {torch.version.cuda})"


if __name__ == "__main__":
    sys.exit(main())
