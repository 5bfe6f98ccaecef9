"""Time and memory from an image to a distribution: this package against others on the same random weights.

    python benchmarks/runtime.py --work runs/benchmark --out benchmarks/runtime.md

makes a bundle of the shape of SmolVLM-256M in ``--work`` (minutes, once; it is taken again where it stands), then runs
every competitor alternately in one process and writes the medians. Run it on a machine that does nothing else. Random
weights say nothing of accuracy; ``emocaliber export tune`` measures what a precision does to a trained model.
What is not installed is not run: ``pip install openvino nncf onnxruntime-genai gguf llama-cpp-python`` for all of
them (the last is compiled on the spot, some ten minutes).
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from cold import ColdStart, cold_starts, first_forward, first_prediction
from competitors import Stage, Work, ours, torch_model
from numpy.typing import NDArray
from PIL import Image
from rivals import RIVALS, genai, llama_cpp, openvino
from roofline import Roofline, floors_ms, measured_roofline
from tqdm import tqdm
from transformers import Idefics3ForConditionalGeneration

from emocaliber.export.bundle import BundleSpec, write_bundle
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.grammar import ANSWER_CLOSE, ANSWER_OPEN
from emocaliber.runtime.onnx_runtime import onnxruntime
from emocaliber.runtime.prepared import prepare
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.taxonomy import TAXONOMIES
from emocaliber.runtime.tokenization import PromptTokenizer
from emocaliber.runtime.tree import build_tree
from emocaliber.train.model_recipe import BuildRecipe
from emocaliber.train.models import build_model, build_processor

SHAPES: dict[str, dict[str, Any]] = {
    "smolvlm-256m": {
        "image_size": 512, "patch_size": 16, "scale_factor": 4, "max_positions": 8192, "vocabulary": 49_280,
        "vision": {"hidden_size": 768, "intermediate_size": 3072, "layers": 12, "heads": 12},
        "text": {"hidden_size": 576, "intermediate_size": 1536, "layers": 30, "heads": 9, "kv_heads": 3},
    },
    "tiny": {
        "image_size": 64, "patch_size": 16, "scale_factor": 2, "max_positions": 2048, "vocabulary": 1000,
        "vision": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2},
        "text": {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 2, "kv_heads": 1},
    },
}  # fmt: skip
PRECISIONS = ("fp32", "int8", "int4", "int8-int4")
OPENVINO_PRECISION = "qdq-int8"
ON_OPENVINO = f"{OPENVINO_PRECISION}, openvino"
"""This package's engine ``openvino``, in the precision that is for it."""
SHIPPED = (*PRECISIONS, OPENVINO_PRECISION, "fp16")
"""In the bundle: half precision is for GPUs, see `gpu.py`."""
COMPETITORS = ("torch fp32", "torch compiled", "torch bf16", *PRECISIONS, ON_OPENVINO, *RIVALS)
MOST_TOKENS = 3
"""Of a label that is scored."""
PAST = 150
ANSWER_TOKENS = 150
"""Length of the generated answer that a prediction is held against: its time is one forward and so many tokens."""
STAGE_S = 180.0
LEAST_ROUNDS = 3
"""A stage ends after this time, but not before so many timed rounds."""
TOKENS_A_TURN = 8
"""Decoded one after another in a turn, as an answer is; the time is that of one."""
REST_S = 0.1
"""Before each turn: threads of the one before it that still wait for work, busily, would take a core from it."""
STAGES = {
    "vision": "vision", "prefill": "prefill, whole prompt", "decode": f"decode, per token at {PAST}",
    "labels_8": "scores of 8 labels, text side", "labels_25": "of 25 labels", "labels_100": "of 100 labels",
    "image": "image to distribution",
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Measures, writes the table, and returns the exit status 0."""
    parser = parser_of(__doc__, COMPETITORS)
    parser.add_argument("--repeats", type=int, default=15, help="most timed rounds of a stage (default: 15)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    bundle, weights = made_bundle(arguments.work, arguments.shape)
    work, skipped = made_work(bundle), not_run(processor()[1])
    wanted = ["torch fp32", *(arguments.competitor or COMPETITORS)]
    names = [name for name in COMPETITORS if name in wanted and name not in skipped]
    competitors = {name: stages_of(name, bundle, weights, work, arguments.threads) for name in names}
    times = measured(competitors, arguments.repeats)
    roofline = measured_roofline(arguments.threads)
    precisions = [name for name in names if name in PRECISIONS]
    codes = cold_codes(bundle, weights, precisions, arguments.threads)
    if ON_OPENVINO in names:
        codes[ON_OPENVINO] = first_prediction(bundle, OPENVINO_PRECISION, "openvino", arguments.threads)
    starts = max(1, arguments.repeats // 5)
    cold = cold_starts(codes, starts)
    with prepared_graphs(bundle, precisions):
        cold |= cold_starts({f"{name}, prepared": codes[name] for name in precisions}, starts)
    text = "\n".join(report(arguments, bundle, work, times, roofline, cold, skipped)) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def stages_of(name: str, bundle: Path, weights: Path, work: Work, threads: int) -> dict[str, Stage]:
    """Returns the stages of one of `COMPETITORS`."""
    kind, _, variant = name.partition(" ")
    if kind == "torch":
        model = opened(weights, torch.bfloat16 if variant == "bf16" else torch.float32)
        return torch_model(model, work, compiled=variant == "compiled")
    if name == ON_OPENVINO:
        return ours(bundle, OPENVINO_PRECISION, work, threads, "openvino")
    if kind == "OpenVINO":
        return openvino(bundle, work, threads, int8=variant == "int8")
    if kind == "genai":
        return genai(bundle, weights, variant, work, threads)
    if kind == "llama.cpp":
        return llama_cpp(bundle, weights, variant, work, threads)
    return ours(bundle, name, work, threads)


def parser_of(description: str | None, competitors: Sequence[str]) -> argparse.ArgumentParser:
    """Returns a parser of what benchmarks of this shape and these competitors are asked for alike."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the bundle and torch's weights")
    parser.add_argument("--shape", choices=SHAPES, default="smolvlm-256m")
    parser.add_argument(
        "--competitor", action="append", choices=competitors, metavar="NAME",
        help=f"repeat for more; torch fp32 is always there (default: all of {', '.join(competitors)})",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="Markdown file to write (default: standard output)")
    return parser


def not_run(flags: Sequence[str]) -> dict[str, str]:
    """Returns who is not compared here, and why."""
    why = {}
    if not {"avx512_bf16", "amx_bf16"} & set(flags):
        why["torch bf16"] = "this processor has no bf16 arithmetic; torch imitates it, hundreds of times slower"
    if shutil.which("c++") is None:
        why["torch compiled"] = "torch.compile needs a C++ compiler"
    for name, modules in {ON_OPENVINO: ("openvino",), **RIVALS}.items():
        missing = [module for module in modules if find_spec(module) is None]
        if missing:
            why[name] = f"not installed: {', '.join(missing)}"
    return why


def made_bundle(work: Path, shape: str) -> tuple[Path, Path]:
    """Returns the folders of the bundle and of torch's weights, made where they are missing."""
    bundle, weights = work / shape / "bundle", work / shape / "weights"
    if not _stands(bundle):
        sizes = {name: value for name, value in SHAPES[shape].items() if name != "vocabulary"}
        build = from_mapping(BuildRecipe, sizes, shape)
        words = [PromptTemplate().direct, *(" ".join(taxonomy.labels) for taxonomy in TAXONOMIES.values())]
        processor = build_processor(build, [*words * 20, *(f"{step / 100:.2f}" for step in range(100))])
        model = build_model(build, processor, seed=0).eval()
        model.resize_token_embeddings(SHAPES[shape]["vocabulary"], mean_resizing=False)
        model.save_pretrained(weights)
        processor.save_pretrained(weights)
        spec = BundleSpec(
            name=shape, version="0", license="Apache-2.0", taxonomies=("emoset-8",), precisions=SHIPPED,
        )  # fmt: skip
        photo = work / shape / "image.png"
        Image.fromarray(made_image()).save(photo)
        samples = [Sample(image=str(photo), taxonomy="emoset-8")]  # the ranges of qdq are found on it
        write_bundle(
            bundle, model, processor, spec, calibration_samples=samples, verify=False, overwrite=True
        )  # fmt: skip
    return bundle, weights


def _stands(bundle: Path) -> bool:
    """Returns whether the bundle is there, with all precisions of today."""
    if not (bundle / "bundle.json").is_file():
        return False
    with Bundle.open(bundle, verify=False) as found:
        return set(SHIPPED) <= set(found.manifest.precisions)


def opened(weights: Path, kind: torch.dtype) -> Any:
    """Returns torch's model in a type."""
    return Idefics3ForConditionalGeneration.from_pretrained(weights, dtype=kind).eval()


def made_work(bundle: Path) -> Work:
    """Returns a made-up image, the prompt for eight labels, and label sets of 8, 25 and 100."""
    with Bundle.open(bundle, verify=False) as found:
        manifest, tokenizer = found.manifest, PromptTokenizer(found.path("tokenizer.json"))
    image = made_image()
    prompt, labels = manifest.prompts.direct, made_labels(tokenizer)
    text = prompt.prefix(labels[:8]) + manifest.image_block.text() + prompt.after_image
    label_sets = {count: labels[:count] for count in (8, 25, 100)}
    answers = {count: [answer_tokens(tokenizer, label) for label in chosen] for count, chosen in label_sets.items()}
    return Work(
        image=image,
        pixels=manifest.preprocessing.batch([manifest.preprocessing.apply(image)]),
        prompt=tuple(tokenizer.encode(text)),
        image_token=tokenizer.token_id(manifest.image_block.token),
        answers=tuple(answers[8]),
        label_sets=label_sets,
        tree_tokens={count: len(build_tree(paths).inner) for count, paths in answers.items()},
        past=PAST,
    )


def made_image() -> NDArray[np.uint8]:
    """Returns (480, 640, 3) noise."""
    return np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)


def made_labels(tokenizer: PromptTokenizer) -> tuple[str, ...]:
    """Returns at least 100 labels of one to `MOST_TOKENS` tokens: those of the taxonomies, then pairs of these."""
    known = dict.fromkeys(label for taxonomy in TAXONOMIES.values() for label in taxonomy.labels)
    pairs = [f"{first} {second}" for second in known for first in known if first != second]
    return tuple(
        label for label in (*known, *pairs) if len(answer_tokens(tokenizer, label)) - 2 <= MOST_TOKENS
    )  # fmt: skip


def answer_tokens(tokenizer: PromptTokenizer, label: str) -> tuple[int, ...]:
    """Returns the tokens of a label between its tags, which are one token each."""
    return tuple(tokenizer.encode(f"{ANSWER_OPEN}{label}{ANSWER_CLOSE}"))


def measured(competitors: dict[str, dict[str, Any]], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Returns times in ms by competitor and stage: stage by stage, competitors in turn, the first round not counted."""
    times: dict[str, dict[str, list[float]]] = {name: {} for name in competitors}
    for stage in tqdm(STAGES, desc="measuring", file=sys.stderr, disable=None):
        begun = time.perf_counter()
        for turn in range(repeats + 1):
            if turn > LEAST_ROUNDS and time.perf_counter() - begun > STAGE_S:
                break
            for name, stages in competitors.items():
                if stage not in stages:
                    continue
                time.sleep(REST_S)
                calls = TOKENS_A_TURN if stage == "decode" else 1
                start = time.perf_counter()
                for _ in range(calls):
                    own_ms = stages[stage]()
                spent = 1e3 * (time.perf_counter() - start) / calls
                if turn:
                    times[name].setdefault(stage, []).append(own_ms if isinstance(own_ms, float) else spent)
    return times


def cold_codes(bundle: Path, weights: Path, precisions: Sequence[str], threads: int) -> dict[str, str]:
    """Returns what fresh processes run, by name."""
    imports = ("import emocaliber.runtime", "from emocaliber.runtime import EmotionModel")
    return {
        **{code: code for code in imports},
        "embedded bundle": first_prediction(None, None, "cpu", threads),
        **{name: first_prediction(bundle, name, "cpu", threads) for name in precisions},
        "torch fp32": first_forward(weights, "float32", "cpu", threads),
    }


@contextmanager
def prepared_graphs(bundle: Path, precisions: Sequence[str]) -> Iterator[None]:
    """Keeps the graphs prepared for this machine beside the bundle, as long as the block lasts."""
    with Bundle.open(bundle) as opened_bundle:
        folders = [prepare(opened_bundle, name).folder for name in precisions]
    os.sync()  # not while a start is timed
    try:
        yield
    finally:
        for folder in folders:
            shutil.rmtree(folder)


def report(
    arguments: argparse.Namespace, bundle: Path, work: Work, times: dict[str, dict[str, list[float]]],
    roofline: Roofline, cold: dict[str, ColdStart], skipped: dict[str, str],
) -> list[str]:  # fmt: skip
    """Returns the lines of the Markdown report."""
    medians = {name: {stage: median(values) for stage, values in row.items()} for name, row in times.items()}
    chosen = "".join(f' --competitor "{name}"' for name in arguments.competitor or ())
    counts = {len(values) for row in times.values() for values in row.values()}
    rounds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(min(counts))
    name, flags = processor()
    kinds = " ".join(flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags)
    read = ", ".join(f"{tokens} for {count}" for count, tokens in work.tree_tokens.items())
    lines = [
        f"# Runtime on a CPU: shape {arguments.shape}, random weights",
        "",
        f"{name} ({kinds or platform.machine()}), {arguments.threads} threads of {os.cpu_count()}, {date.today()}; "
        f"{versions()}. Prompt of {len(work.prompt)} tokens, {work.prompt.count(work.image_token)} of them visual; "
        f"labels of 1 to {MOST_TOKENS} tokens, whose trees add to a pass {read} labels, behind their cached prefix. "
        "From image to distribution torch is given pixels that are ready; this package resizes the image, too. "
        f"Medians of {rounds} rounds, all competitors in turn in one process, each after a rest of {REST_S} s, "
        f"{TOKENS_A_TURN} tokens decoded a turn; load at the end "
        f"{os.getloadavg()[0]:.1f}. Made by `python benchmarks/runtime.py --work DIR --shape {arguments.shape} "
        f"--repeats {arguments.repeats} --threads {arguments.threads}{chosen}`.",
        "",
    ]
    lines += table("ms", medians, {said: cells(medians, stage, ".1f") for stage, said in STAGES.items()})
    lines += ["", "Times faster than torch fp32:", "", *table("", medians, ratios(medians))]
    growth = {
        f"cost of {count} labels over 8, text side": cells(medians, f"labels_{count}", ".2f", under="labels_8")
        for count in (25, 100)
    }
    lines += ["", *table("", medians, growth)]
    lines += roofline_lines(arguments.shape, bundle, work, medians, roofline)
    lines += ["", "| a fresh process | s | peak MiB |", "|---|---:|---:|"]
    lines += [f"| {name} | {start.seconds:.2f} | {start.peak_mib:.0f} |" for name, start in cold.items()]
    if skipped:
        lines += ["", "Not run:", "", *(f"- {name}: {why}." for name, why in skipped.items())]
    return lines


def ratios(medians: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    """Returns rows of how many times faster than torch each is."""
    base = medians["torch fp32"]
    generated = base["image"] + ANSWER_TOKENS * base["decode"]
    rows = {
        STAGES[stage]: cells(medians, stage, ".2f", over=base[stage])
        for stage in ("vision", "prefill", "decode", "labels_8", "image")
    }
    said = f"over one generated answer of {ANSWER_TOKENS} tokens in torch fp32 (computed: {generated:.0f} ms)"
    rows[f"image to distribution, {said}"] = cells(medians, "image", ".1f", over=generated)
    if "torch bf16" in medians:
        rows["over one forward in torch bf16"] = cells(medians, "image", ".2f", over=medians["torch bf16"]["image"])
    return rows


def cells(
    medians: dict[str, dict[str, float]], stage: str, form: str, *, over: float | None = None, under: str | None = None
) -> list[str]:
    """Returns a stage's time of each, or ``over`` by it, or it by the time of ``under``; empty where not run."""
    row = []
    for times in medians.values():
        value = times.get(stage)
        if value is not None and over is not None:
            value = over / value
        if value is not None and under is not None:
            value /= times[under]
        row.append("" if value is None else format(value, form))
    return row


def table(corner: str, names: Iterable[str], rows: dict[str, list[str]]) -> list[str]:
    """Returns the lines of a table."""
    columns = list(names)
    head = [f"| {corner} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    return [*head, *(f"| {said} | {' | '.join(row)} |" for said, row in rows.items())]


def versions() -> str:
    """Returns the versions of what is compared, as far as it is installed."""
    found = {"onnxruntime": onnxruntime.__version__}  # the imported one: it comes under several names
    for package in ("torch", "transformers", "openvino", "nncf", "onnxruntime-genai", "llama_cpp_python"):
        found |= {dist.name: dist.version for dist in [*distributions(name=package)][:1]}
    return ", ".join(f"{package} {version}" for package, version in found.items())


def roofline_lines(
    shape: str, bundle: Path, work: Work, medians: dict[str, dict[str, float]], roofline: Roofline
) -> list[str]:
    """Returns the table of what share of the machine's own peak each stage reaches."""
    lines = [
        "",
        f"Share of the roofline, measured in the same run: {roofline.fp32_gflops:.0f} GFLOP/s fp32, "
        f"{roofline.int8_gops:.0f} GOP/s int8 (products of 2,048²), {roofline.read_gbs:.1f} GB/s. Vision and prefill "
        "against operations, decode against bytes of weights:",
        "",
    ]
    known = {name: row for name, row in medians.items() if name in ("torch fp32", "torch bf16", *PRECISIONS)}
    floors = {name: floors_ms(SHAPES[shape], len(work.prompt), name, bundle, roofline) for name in known}
    rows = {
        STAGES[stage]: [f"{floors[name][stage] / known[name][stage]:.0%}" for name in known]
        for stage in ("vision", "prefill", "decode")
    }
    return [*lines, *table("", known, rows)]


def processor() -> tuple[str, list[str]]:
    """Returns the processor's name and its flags."""
    try:
        rows = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return platform.processor() or platform.machine(), []
    found = {name.strip(): text.strip() for name, _, text in rows}
    return found.get("model name", platform.machine()), found.get("flags", "").split()


if __name__ == "__main__":
    sys.exit(main())
