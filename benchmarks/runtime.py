"""Time and memory from an image to a distribution: this package against torch on the same random weights.

    python benchmarks/runtime.py --work runs/benchmark --out benchmarks/runtime.md

makes a bundle of the shape of SmolVLM-256M in ``--work`` (minutes, once; it is taken again where it stands), then runs
every competitor alternately in one process and writes the medians. Run it on a machine that does nothing else. Random
weights say nothing of accuracy; ``emocaliber export tune`` measures what a precision does to a trained model.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from competitors import Work, not_run, ours, torch_eager
from roofline import Roofline, floors_ms, measured_roofline
from tqdm import tqdm
from transformers import Idefics3ForConditionalGeneration

from emocaliber.export.bundle import BundleSpec, write_bundle
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.grammar import ANSWER_CLOSE, ANSWER_OPEN
from emocaliber.runtime.onnx_runtime import onnxruntime
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.taxonomy import TAXONOMIES
from emocaliber.runtime.tokenization import PromptTokenizer
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
LABELS = TAXONOMIES["emoset-8"].labels
PAST = 150
ANSWER_TOKENS = 150
"""Length of the generated answer that a prediction is held against: its time is one forward and so many tokens."""
STAGES = {
    "vision": "vision", "prefill": "prefill, whole prompt", "decode": f"decode, per token at {PAST}",
    "labels_8": "scores of 8 labels, text side", "labels_25": "of 25 labels", "labels_100": "of 100 labels",
    "image": "image to distribution",
}  # fmt: skip
COLD = """
import time; begun = time.perf_counter()
{code}
spent = time.perf_counter() - begun
try:
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
except (OSError, StopIteration):
    peak = 0
print(spent, peak / 1024)
"""


def main(words: Sequence[str] | None = None) -> int:
    """Measures, writes the table, and returns the exit status 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the bundle and torch's weights")
    parser.add_argument("--shape", choices=SHAPES, default="smolvlm-256m")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="repeat for more (default: all)")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds (default: 15)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="Markdown file to write (default: standard output)")
    arguments = parser.parse_args(words)
    precisions = tuple(arguments.precision or PRECISIONS)
    torch.set_num_threads(arguments.threads)
    bundle, weights = prepared(arguments.work, arguments.shape)
    flags, work = processor()[1], made_work(bundle)
    competitors = {"torch fp32": torch_eager(opened(weights, torch.float32), work)}
    if "torch bf16" not in not_run(flags):
        competitors["torch bf16"] = torch_eager(opened(weights, torch.bfloat16), work)
    competitors |= {name: ours(bundle, name, work, arguments.threads) for name in precisions}
    times = measured(competitors, arguments.repeats)
    roofline = measured_roofline(arguments.threads)
    cold = cold_starts(bundle, weights, precisions, arguments.threads, max(1, arguments.repeats // 5))
    text = "\n".join(report(arguments, bundle, work, times, roofline, cold, flags)) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def prepared(work: Path, shape: str) -> tuple[Path, Path]:
    """Returns the folders of the bundle and of torch's weights, made where they are missing."""
    bundle, weights = work / shape / "bundle", work / shape / "weights"
    if not (bundle / "bundle.json").is_file():
        sizes = {name: value for name, value in SHAPES[shape].items() if name != "vocabulary"}
        build = from_mapping(BuildRecipe, sizes, shape)
        words = [PromptTemplate().direct, *(" ".join(taxonomy.labels) for taxonomy in TAXONOMIES.values())]
        processor = build_processor(build, [*words * 20, *(f"{step / 100:.2f}" for step in range(100))])
        model = build_model(build, processor, seed=0).eval()
        model.resize_token_embeddings(SHAPES[shape]["vocabulary"], mean_resizing=False)
        model.save_pretrained(weights)
        spec = BundleSpec(
            name=shape, version="0", license="Apache-2.0", taxonomies=("emoset-8",), precisions=PRECISIONS,
        )  # fmt: skip
        write_bundle(bundle, model, processor, spec, verify=False, overwrite=True)
    return bundle, weights


def opened(weights: Path, kind: torch.dtype) -> Any:
    """Returns torch's model in a type."""
    return Idefics3ForConditionalGeneration.from_pretrained(weights, dtype=kind).eval()


def made_work(bundle: Path) -> Work:
    """Returns a made-up image, the prompt for eight labels, and label sets of 8, 25 and 100."""
    with Bundle.open(bundle, verify=False) as found:
        manifest, tokenizer = found.manifest, PromptTokenizer(found.path("tokenizer.json"))
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    prompt = manifest.prompts.direct
    text = prompt.prefix(LABELS) + manifest.image_block.text() + prompt.after_image
    made_up = [f"{first} {second}" for first in LABELS for second in TAXONOMIES["webemo-25"].labels if first != second]
    return Work(
        image=image,
        pixels=manifest.preprocessing.batch([manifest.preprocessing.apply(image)]),
        prompt=tuple(tokenizer.encode(text)),
        image_token=tokenizer.token_id(manifest.image_block.token),
        answers=tuple(tuple(tokenizer.encode(f"{ANSWER_OPEN}{label}{ANSWER_CLOSE}")) for label in LABELS),
        label_sets={8: LABELS, 25: TAXONOMIES["webemo-25"].labels, 100: tuple(made_up[:100])},
        past=PAST,
    )


def measured(competitors: dict[str, dict[str, Any]], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Returns times in ms by competitor and stage: stage by stage, competitors in turn, the first round not counted."""
    times: dict[str, dict[str, list[float]]] = {name: {} for name in competitors}
    for stage in tqdm(STAGES, desc="measuring", file=sys.stderr, disable=None):
        for turn in range(repeats + 1):
            for name, stages in competitors.items():
                if stage not in stages:
                    continue
                start = time.perf_counter()
                own_ms = stages[stage]()
                spent = 1e3 * (time.perf_counter() - start)
                if turn:
                    times[name].setdefault(stage, []).append(own_ms if isinstance(own_ms, float) else spent)
    return times


def cold_starts(
    bundle: Path, weights: Path, precisions: Sequence[str], threads: int, repeats: int
) -> dict[str, tuple[float, float]]:
    """Returns seconds to the first distribution and peak memory in MiB of fresh processes."""
    ours_code = (
        "import numpy as np; from emocaliber.runtime import EmotionModel\n"
        "model = EmotionModel.load({bundle!r}, precision={precision!r}, engine='cpu', threads={threads})\n"
        "model.predict(np.zeros((480, 640, 3), np.uint8))"
    )
    torch_code = (
        "import torch; torch.set_num_threads({threads})\nfrom transformers import Idefics3ForConditionalGeneration\n"
        "model = Idefics3ForConditionalGeneration.from_pretrained({weights!r}, dtype=torch.float32).eval()\n"
        "size, count = model.config.vision_config.image_size, model.model.image_seq_len\n"
        "ids = torch.full((1, 60 + count), 9); ids[0, 20:20 + count] = model.config.image_token_id\n"
        "with torch.inference_mode(): model(input_ids=ids, pixel_values=torch.ones(1, 1, 3, size, size))"
    )
    codes = {"import emocaliber.runtime": "import emocaliber.runtime"}
    codes["embedded bundle"] = ours_code.format(bundle=None, precision=None, threads=threads)
    codes |= {name: ours_code.format(bundle=str(bundle), precision=name, threads=threads) for name in precisions}
    codes["torch fp32"] = torch_code.format(weights=str(weights), threads=threads)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in codes}
    for _ in tqdm(range(repeats), desc="cold starts", file=sys.stderr, disable=None):
        for name, code in codes.items():
            done = subprocess.run(
                [sys.executable, "-c", COLD.format(code=code)], capture_output=True, text=True, check=True
            )
            seconds, peak_mib = map(float, done.stdout.split())
            found[name].append((seconds, peak_mib))
    return {name: (median(s for s, _ in rows), median(m for _, m in rows)) for name, rows in found.items()}


def report(
    arguments: argparse.Namespace, bundle: Path, work: Work, times: dict[str, dict[str, list[float]]],
    roofline: Roofline, cold: dict[str, tuple[float, float]], flags: Sequence[str],
) -> list[str]:  # fmt: skip
    """Returns the lines of the Markdown report."""
    medians = {name: {stage: median(values) for stage, values in row.items()} for name, row in times.items()}
    names, base = list(medians), medians["torch fp32"]
    generated = base["image"] + ANSWER_TOKENS * base["decode"]
    kinds = " ".join(flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags)
    lines = [
        f"# Runtime on a CPU: shape {arguments.shape}, random weights",
        "",
        f"{processor()[0]} ({kinds or platform.machine()}), {arguments.threads} threads of {os.cpu_count()}, "
        f"{date.today()}; "
        f"torch {torch.__version__}, transformers {version('transformers')}, onnxruntime {onnxruntime.__version__}. "
        f"Prompt of {len(work.prompt)} tokens, {work.prompt.count(work.image_token)} of them visual. "
        f"Medians of {arguments.repeats} rounds, all competitors in turn in one process; load at the end "
        f"{os.getloadavg()[0]:.1f}. Made by `python benchmarks/runtime.py --work DIR --shape {arguments.shape} "
        f"--repeats {arguments.repeats} --threads {arguments.threads}`.",
        "",
        f"| ms | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    for stage, said in STAGES.items():
        cells = [f"{medians[name][stage]:.1f}" if stage in medians[name] else "" for name in names]
        lines.append(f"| {said} | {' | '.join(cells)} |")
    lines += ["", "Times faster than torch fp32:", "", f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for stage in ("vision", "prefill", "decode", "labels_8", "image"):
        lines.append(f"| {STAGES[stage]} | {' | '.join(f'{base[stage] / medians[n][stage]:.2f}' for n in names)} |")

    def over(whole_ms: float, form: str) -> str:
        return " | ".join(format(whole_ms / medians[name]["image"], form) for name in names)

    lines.append(
        f"| image to distribution, over one generated answer of {ANSWER_TOKENS} tokens in torch fp32 (computed: "
        f"{generated:.0f} ms) | {over(generated, '.1f')} |"
    )
    if "torch bf16" in medians:
        honest = medians["torch bf16"]["image"]
        lines.append(f"| over one forward in torch bf16 | {over(honest, '.2f')} |")
    for count in (25, 100):
        cells = [
            f"{medians[n][f'labels_{count}'] / medians[n]['labels_8']:.2f}" if f"labels_{count}" in medians[n] else ""
            for n in names
        ]
        lines.append(f"| cost of {count} labels over 8 (not a speed-up) | {' | '.join(cells)} |")
    lines += roofline_lines(arguments.shape, bundle, work, medians, roofline)
    lines += ["", "| a fresh process | s | peak MiB |", "|---|---:|---:|"]
    lines += [f"| {name} | {seconds:.2f} | {peak:.0f} |" for name, (seconds, peak) in cold.items()]
    lines += ["", "Not run:", "", *(f"- {name}: {why}." for name, why in not_run(flags).items())]
    return lines


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
        f"| | {' | '.join(medians)} |",
        f"|---|{'---:|' * len(medians)}",
    ]
    floors = {name: floors_ms(SHAPES[shape], len(work.prompt), name, bundle, roofline) for name in medians}
    for stage in ("vision", "prefill", "decode"):
        cells = [f"{floors[name][stage] / medians[name][stage]:.0%}" for name in medians]
        lines.append(f"| {STAGES[stage]} | {' | '.join(cells)} |")
    return lines


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
