"""Speed, utilisation and memory of the training stages at full size, with random weights and made-up samples.

    python benchmarks/training.py --shape 7b --precision bf16 --checkpointing --out benchmarks/training.md
    python benchmarks/training.py --shape 7b --precision bf16 --lora 64
    python benchmarks/training.py --shape 7b --estimate recipes/emocaliber-7b/recipe.toml

The samples are as long as the paper's: one image at the most pixels, a prompt, a reasoning of about 300 tokens. It is
the project's own training code that runs; a clock among the trainer's callbacks reads the time, without the first step.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import platform
import random
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers.trainer
from costs import PEAK_TFLOPS, Batch, adapter_weights, forward_flops, peak_tflops, training_flops
from estimate import Assumptions, estimate
from estimate import table as estimate_table
from PIL import Image
from shapes import SHAPES, build_of, model_of
from transformers import TrainerCallback
from trl import GRPOTrainer

from emocaliber.runtime.grammar import REASONING_TAGS
from emocaliber.runtime.records import from_mapping
from emocaliber.runtime.samples import Sample
from emocaliber.train.conversations import prompt_of, response_of
from emocaliber.train.model_recipe import BuildRecipe
from emocaliber.train.models import DTYPES, build_processor, corpus
from emocaliber.train.quiet import quiet_libraries
from emocaliber.train.recipe import Recipe, load_recipe
from emocaliber.train.reinforce import train_reinforce
from emocaliber.train.stages import weights_type
from emocaliber.train.supervised import train_supervised

HEADER = """| shape | trained | precision | checkpointing | kernels | stage | tokens/s | TFLOP/s | utilised | peak GiB |
|---|---|---|---|---|---|---|---|---|---|
"""


class Finished(Exception):  # noqa: N818 - the end of a measurement is no error
    """Ends a run after its last step: there is nothing to save."""


@dataclass(slots=True)
class Clock:
    """Seconds of every step, and of the drawing of responses in it."""

    steps: list[float] = field(default_factory=list)
    rollouts: list[float] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    """Mean length of the responses drawn in a step."""


@contextmanager
def clocked() -> Iterator[Clock]:
    """Yields a clock that reads every trainer built within."""
    clock = Clock()

    class Reader(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.rollouts.append(0.0)
            clock.steps.append(-now())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.steps[-1] += now()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "completions/mean_length" in (logs or {}):
                clock.lengths.append(logs["completions/mean_length"])

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise Finished

    draw = GRPOTrainer._generate

    def timed(self: Any, *arguments: Any, **options: Any) -> Any:
        clock.rollouts[-1] -= now()
        drawn = draw(self, *arguments, **options)
        clock.rollouts[-1] += now()
        return drawn

    with (
        patch.object(GRPOTrainer, "_generate", timed),
        patch.object(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS, Reader]),
    ):
        yield clock


def now() -> float:
    """Returns a time in seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def samples_of(folder: Path, count: int, side: int, words: int) -> list[Sample]:
    """Returns made-up samples with a square image of ``side`` pixels and a reasoning of ``words`` words."""
    draw = random.Random(0)  # noqa: S311 - reproducible, not secret
    spoken = ["".join(draw.choices("abcdefghij", k=3)) for _ in range(200)]
    path = folder / "image.png"
    Image.effect_noise((side, side), 64).convert("RGB").save(path)
    return [
        Sample(
            image=str(path),
            taxonomy="emoset-8",
            answer="awe",
            reasoning={tag: " ".join(draw.choices(spoken, k=words // len(REASONING_TAGS))) for tag in REASONING_TAGS},
        )
        for _ in range(count)
    ]


def recipe_of(options: argparse.Namespace, build: dict[str, Any]) -> Recipe:
    """Returns the recipe that the command line describes."""
    table = {
        "learning_rate": 1e-6,
        "micro_batch": options.micro,
        "precision": options.precision,
        "gradient_checkpointing": options.checkpointing,
        "fused_kernels": options.fused,
    }
    calibrate = {
        "steps": options.steps,
        "prompts_per_step": options.batch // options.rollouts,
        "rollouts": options.rollouts,
        "max_new_tokens": options.new_tokens,
        "save_steps": 10**6,
    }
    mapping: dict[str, Any] = {
        "name": f"benchmark {options.shape}",
        "taxonomies": ["emoset-8"],
        "prompt": {"image_first": True},
        "data": {"samples": "none"},
        "teacher": {"build": build},
        "reason": {**table, "batch_size": options.batch, "save_steps": 10**6},
        "calibrate": {**table, **calibrate},
    }
    if options.lora:
        mapping["lora"] = {"rank": options.lora, "alpha": 2 * options.lora}
    return from_mapping(Recipe, mapping, "benchmark")


def estimated(options: argparse.Namespace) -> str:
    """Returns what a full run of a recipe costs, as Markdown."""
    recipe = load_recipe(options.estimate)
    build = from_mapping(BuildRecipe, build_of(options.shape), "shape")
    model = model_of(build, build_processor(build, ["word"]), SHAPES[options.shape]["vocabulary"], "meta")
    given = Assumptions(
        utilisation=options.utilisation,
        peak_tflops=options.peak_tflops or PEAK_TFLOPS["H100"],
        rollout_tokens_s=options.rollout_tokens_s,
    )
    return estimate_table(recipe, estimate(recipe, model.config, given), given)


def batch_of(sample: Sample, recipe: Recipe, processor: Any) -> Batch:
    """Returns what one sample holds, after this processor."""
    prompt = processor.apply_chat_template(
        prompt_of(sample, recipe.prompt, "reason"), add_generation_prompt=True, tokenize=False
    )
    inputs = processor(text=[prompt], images=[[Image.open(sample.image)]], return_tensors="pt")
    response = processor.tokenizer.encode(response_of(sample, "reason", None), add_special_tokens=False)
    return Batch(
        prompt_tokens=inputs["input_ids"].shape[1],
        response_tokens=len(response) + 1,
        patches=int(inputs["image_grid_thw"].prod()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one stage, or half of one, did in a second."""

    stage: str
    tokens_s: float
    tflops: float | None
    memory_gib: float


def measure_reason(model: Any, processor: Any, samples: Sequence[Sample], recipe: Recipe, folder: Path) -> Figures:
    """Returns the figures of supervised fine-tuning."""
    batch = batch_of(samples[0], recipe, processor)
    adapters = None if recipe.lora is None else adapter_weights(model.config, recipe.lora.rank)
    work = training_flops(model.config, batch, adapter_weights=adapters)
    size = recipe.stage("reason").batch_size
    clock, memory = run(lambda: train_supervised("reason", model, processor, samples, recipe, folder))
    seconds = statistics.median(clock.steps[1:])
    tokens = size * (batch.prompt_tokens + batch.response_tokens)
    return Figures(stage="reason", tokens_s=tokens / seconds, tflops=size * work / seconds / 1e12, memory_gib=memory)


def measure_calibrate(
    policy: Path, config: Any, processor: Any, samples: Sequence[Sample], recipe: Recipe, folder: Path
) -> list[Figures]:
    """Returns the figures of reinforcement: of drawing the responses, and of learning from them.

    Learning is a forward and a backward pass of the policy and a forward pass of the reference. Responses are drawn
    token by token, which memory bounds, not arithmetic: no utilisation is stated.
    """
    clock, memory = run(lambda: train_reinforce(policy, processor, samples, recipe, folder))
    table = recipe.stage("calibrate")
    responses, length = table.prompts_per_step * table.rollouts, statistics.median(clock.lengths[1:])
    rollout = statistics.median(clock.rollouts[1:])
    update = statistics.median(step - drawn for step, drawn in zip(clock.steps[1:], clock.rollouts[1:], strict=True))
    batch = dataclasses.replace(batch_of(samples[0], recipe, processor), response_tokens=round(length))
    adapters = None if recipe.lora is None else adapter_weights(config, recipe.lora.rank)
    work = training_flops(config, batch, adapter_weights=adapters) + forward_flops(config, batch).total
    tokens = responses * (batch.prompt_tokens + batch.response_tokens)
    return [
        Figures(stage="calibrate: draw", tokens_s=responses * length / rollout, tflops=None, memory_gib=memory),
        Figures(
            stage="calibrate: learn",
            tokens_s=tokens / update,
            tflops=responses * work / update / 1e12,
            memory_gib=memory,
        ),
    ]


def run(train: Callable[[], object]) -> tuple[Clock, float]:
    """Returns what the clock read while a stage trained, and the most memory it held, in GiB."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with clocked() as clock, contextlib.suppress(Finished):
        train()
    if on_gpu:
        return clock, torch.cuda.max_memory_allocated() / 2**30
    return clock, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(options: argparse.Namespace, folder: Path) -> list[Figures]:
    """Returns the figures of the stages that the command line asks for."""
    recipe = recipe_of(options, build_of(options.shape))
    build = recipe.teacher.build
    assert build is not None
    samples = samples_of(folder, options.batch * options.steps, build.image_size, options.words)
    processor = build_processor(build, corpus(samples[:8], recipe.prompt))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model_of(build, processor, SHAPES[options.shape]["vocabulary"], device)
    model.to(weights_type(recipe, options.precision))
    config, policy, figures = model.config, folder / "policy", []
    if "calibrate" in options.stages:
        model.save_pretrained(policy)
        processor.save_pretrained(policy)
    if "reason" in options.stages:
        figures.append(measure_reason(model, processor, samples, recipe, folder / "reason"))
    del model
    if "calibrate" in options.stages:
        figures += measure_calibrate(policy, config, processor, samples, recipe, folder / "calibrate")
    return figures


def table(options: argparse.Namespace, figures: Sequence[Figures]) -> str:
    """Returns the rows of a measurement as Markdown, under what they were measured with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    peak = options.peak_tflops or peak_tflops(device)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    rows = []
    for row in figures:
        used = "–" if peak is None or row.tflops is None else f"{row.tflops / peak:.1%}"
        tflops = "–" if row.tflops is None else f"{row.tflops:.3g}"
        trained = f"LoRA {options.lora}" if options.lora else "all"
        cells = [options.shape, trained, options.precision, "yes" if options.checkpointing else "no",
                 "fused" if options.fused else "stock", row.stage, f"{row.tokens_s:,.0f}", tflops, used,
                 f"{row.memory_gib:.1f}"]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    command = shlex.join(["python", "benchmarks/training.py", *sys.argv[1:]])
    peak_text = "peak unknown" if peak is None else f"peak {peak:g} TFLOP/s"
    return (
        f"\n{device} ({peak_text}), {date.today():%d %B %Y}; {libraries}. `{command}`\n\n{HEADER}"
        + "\n".join(rows)
        + "\n"
    )


def processor_name() -> str:
    """Returns the name of this machine's processor."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores, no GPU"
    return platform.processor()


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--stages", nargs="+", choices=("reason", "calibrate"), default=["reason", "calibrate"])
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="train adapters of this rank alone")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--fused", action="store_true", help="Liger kernels")
    parser.add_argument("--batch", type=int, default=8, help="samples, or responses, of a step")
    parser.add_argument("--micro", type=int, default=None, help="of them at once")
    parser.add_argument("--rollouts", type=int, default=8, help="responses an image")
    parser.add_argument("--new-tokens", type=int, default=300, help="longest response that is drawn")
    parser.add_argument("--words", type=int, default=280, help="of a made-up reasoning")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps; the first is not counted")
    parser.add_argument("--peak-tflops", type=float, help="of the device, where its name is not known here")
    parser.add_argument("--estimate", type=Path, metavar="RECIPE", help="compute what a full run costs; train nothing")
    parser.add_argument("--utilisation", type=float, default=0.4, help="assumed by --estimate")
    parser.add_argument("--rollout-tokens-s", type=float, default=1000.0, help="of one GPU, assumed by --estimate")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="add the table to this file")
    return parser


def main() -> int:
    """Measures, and prints the table or adds it to a file."""
    options = parser().parse_args()
    quiet_libraries()
    if options.estimate is not None:
        sys.stdout.write(estimated(options))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        text = table(options, measure(options, Path(folder)))
    if options.out is None:
        sys.stdout.write(text)
    else:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
