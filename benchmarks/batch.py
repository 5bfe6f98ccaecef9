"""What ``emocaliber batch`` leaves of the engine's throughput: ``python benchmarks/batch.py INPUT... [--bundle B]``.

Both sides predict the same images in the same run, by turns: the engine from memory, where the images lie decoded, in
`EmotionModel.predict_batch`; the pipeline from their files to the finished output. Prints both, their ratio, and the
machine. Where the engine itself takes all cores, decoding takes from it: the CPU times say how much.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from emocaliber.runtime import EmotionModel
from emocaliber.runtime.commands import batch
from emocaliber.runtime.commands.collection import Collection, Plan
from emocaliber.runtime.commands.console import write_text
from emocaliber.runtime.commands.inference import candidates_of, load_model, question_of
from emocaliber.runtime.commands.inputs import Item, find_items
from emocaliber.runtime.commands.pipeline import CHUNK
from emocaliber.runtime.images import decode_image


def main() -> None:
    """Measures what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    batch.configure(parser)
    parser.add_argument("--turns", type=int, default=5, help="measurements of both sides (default: 5)")
    parser.add_argument("--images", type=int, default=512, help="take the first ones only (default: 512)")
    with tempfile.TemporaryDirectory() as folder:
        arguments = parser.parse_args([*sys.argv[1:], "--out", str(Path(folder) / "out.jsonl")])
        items = find_items(arguments.input, question_of(arguments))[: arguments.images]
        with load_model(arguments) as model:
            report(arguments, model, items)


def report(arguments: argparse.Namespace, model: EmotionModel, items: list[Item]) -> None:
    """Prints images a second of both sides, turn by turn, and the ratio."""
    decoded = [decode_image(item.source()) for item in items]
    question = question_of(arguments)
    candidates_of(model, question)

    def engine() -> None:
        for start in range(0, len(decoded), CHUNK):
            model.predict_batch(decoded[start : start + CHUNK], **question.arguments())

    def pipeline() -> None:
        plan = Plan(out=arguments.out, images=len(items), shard_size=None, chunk=CHUNK)
        collection = Collection(plan, [item.image for item in items], {})
        batch.collect(arguments, model, items, plan, collection)
        collection.close()
        arguments.out.unlink()

    write_text(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    write_text(f"{model.manifest.name} {model.precision}, {model.engine}, {len(items)} images, {question.mode} mode")
    engine()
    ratios = []
    for _ in range(arguments.turns):
        (alone, alone_ms), (together, together_ms) = measured(engine, len(items)), measured(pipeline, len(items))
        ratios.append(together / alone)
        write_text(
            f"engine {alone:7.1f} images/s, {alone_ms:6.1f} ms of CPU an image   "
            f"pipeline {together:7.1f} images/s, {together_ms:6.1f} ms   ratio {ratios[-1]:.3f}"
        )
    write_text(f"median ratio {statistics.median(ratios):.3f}")


def measured(work: Callable[[], None], images: int) -> tuple[float, float]:
    """Returns how many images a second some work does, and milliseconds of CPU an image, of all threads."""
    started, spent = time.perf_counter(), time.process_time()
    work()
    return images / (time.perf_counter() - started), 1e3 * (time.process_time() - spent) / images


if __name__ == "__main__":
    main()
