"""``emocaliber data build-cot``: reasoning for sample sets that have none."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emocaliber.runtime.cli import EXIT_ERROR, EXIT_OK
from emocaliber.runtime.errors import ConfigError
from emocaliber.train.cot import Built, CueWriter, Writer, build_reasoning

if TYPE_CHECKING:  # loaded only by those who ask a model
    from emocaliber.evaluate.endpoint import Endpoint
    from emocaliber.evaluate.responders import Responder

DEFAULT_KEY = "OPENAI_API_KEY"

Progress = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]
"""``progress(title, unit)`` opens a bar that is told (done, total)."""

_ENDPOINT_ONLY = ("judge_endpoint", "api_key_env", "concurrency", "retries", "timeout_s", "max_edge")
_MODEL_ONLY = (
    "model", "endpoint", "judge_model", "attempts", "temperature", "max_new_tokens", "seed", "batch_size",
    *_ENDPOINT_ONLY,
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``build-cot``. An option that is not given is None, so that one out of place is noticed."""
    parser.add_argument("samples", metavar="SAMPLES", type=Path, help="samples with answers, in JSON Lines")
    parser.add_argument("folder", metavar="OUT", type=Path, help="folder to write to, or to go on in")
    parser.add_argument(
        "--from", choices=("cues", "model"), required=True, dest="way",
        help="what the reasoning is made of: measured cues and given annotations, or what an image-text model writes",
    )  # fmt: skip
    group = parser.add_argument_group("with --from cues")
    group.add_argument(
        "--annotations", type=_names, metavar="NAME,...",
        help="annotations of the samples that may be told, such as category; '' for none (default: all)",
    )  # fmt: skip
    group = parser.add_argument_group("with --from model")
    group.add_argument("--model", metavar="NAME", help="folder of a model, hf://owner/name, or a name at --endpoint")
    group.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible base URL, such as http://localhost:8000/v1")
    group.add_argument("--judge-model", metavar="NAME", help="model of the blind second pass (default: --model)")
    group.add_argument("--judge-endpoint", metavar="URL", help="where the judge is served (default: --endpoint)")
    group.add_argument("--attempts", type=int, metavar="N", help="responses before a sample is rejected (default 3)")
    group.add_argument("--temperature", type=float, help="of the writer; the judge has 0 (default 0.7)")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="longest response (default 512)")
    group.add_argument("--seed", type=int, help="of the first attempt; each next has the next one (default 0)")
    group.add_argument("--batch-size", type=int, metavar="N", help="images at once, for a model in memory (default 8)")
    group = parser.add_argument_group("with --endpoint")
    group.add_argument(
        "--api-key-env", metavar="VARIABLE",
        help=f"environment variable that holds the key (default {DEFAULT_KEY}, where it is set and the connection is "
        "encrypted or local)",
    )  # fmt: skip
    group.add_argument("--concurrency", type=int, metavar="N", help="requests in flight at once (default 8)")
    group.add_argument("--retries", type=int, metavar="N", help="repetitions after a failure (default 5)")
    group.add_argument("--timeout-s", type=float, metavar="SECONDS", help="longest silence (default 120)")
    group.add_argument("--max-edge", type=int, metavar="PIXELS", help="longest side of sent images (default 1024)")
    parser.set_defaults(usage_error=parser.error)


def run(arguments: argparse.Namespace, progress: Progress) -> int:
    """Returns the exit status: 0, or 1 if not a single sample got reasoning."""
    _refuse_misplaced(arguments)
    writer = _cue_writer(arguments) if arguments.way == "cues" else _model_writer(arguments)
    with progress("build-cot", "sample") as report:
        built = build_reasoning(arguments.samples, arguments.folder, writer, report)
    sys.stderr.write("\n".join(_summary(built)) + "\n")
    if built.samples is None:
        return EXIT_ERROR
    sys.stdout.write(f"{built.samples}\n")
    return EXIT_OK


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _refuse_misplaced(arguments: argparse.Namespace) -> None:
    """Ends with a usage error if an option is given that would be ignored, or one is missing."""
    given = {name for name in (*_MODEL_ONLY, "annotations") if getattr(arguments, name) is not None}
    if arguments.way == "cues":
        wrong, why = given & set(_MODEL_ONLY), "only with --from model"
    elif arguments.endpoint is None:
        wrong, why = given & {"annotations", *_ENDPOINT_ONLY}, "only with --from cues or --endpoint"
    else:
        wrong, why = given & {"annotations", "batch_size"}, "not with --endpoint"
    if wrong:
        arguments.usage_error(f"{', '.join(sorted('--' + name.replace('_', '-') for name in wrong))}: {why}")
    if arguments.way == "model" and arguments.model is None:
        arguments.usage_error("--from model needs --model")


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns the options of these names that were given; the others are left to their defaults."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _cue_writer(arguments: argparse.Namespace) -> Writer:
    return CueWriter(arguments.annotations)


def _model_writer(arguments: argparse.Namespace) -> Writer:
    from emocaliber.evaluate.endpoint import EndpointResponder
    from emocaliber.train.cot.prompted import ModelWriter, PromptSettings

    asked = _given(arguments, "attempts", "temperature", "max_new_tokens", "seed")
    if arguments.endpoint is None:
        batch_size = 8 if arguments.batch_size is None else arguments.batch_size
        settings = PromptSettings(chunk=batch_size, **asked)
        model = _local(arguments.model, batch_size)
        judge = model if arguments.judge_model is None else _local(arguments.judge_model, batch_size)
        return ModelWriter(model, judge, settings, {"batch_size": batch_size})
    served = _endpoint(arguments, arguments.endpoint, arguments.model)
    judge_url = arguments.judge_endpoint or arguments.endpoint
    judging = _endpoint(arguments, judge_url, arguments.judge_model or arguments.model)
    # Several times the concurrency, so that slow responses at the end of a chunk leave few threads idle.
    settings = PromptSettings(chunk=4 * served.concurrency, **asked)
    record = {"max_edge": served.max_edge, "jpeg_quality": served.jpeg_quality}
    return ModelWriter(EndpointResponder(served), EndpointResponder(judging), settings, record)


def _endpoint(arguments: argparse.Namespace, url: str, model: str) -> Endpoint:
    from emocaliber.evaluate.endpoint import Endpoint

    limits = _given(arguments, "concurrency", "retries", "timeout_s", "max_edge")
    return Endpoint(url=url, model=model, api_key=_api_key(arguments.api_key_env, url), **limits)


def _api_key(variable: str | None, url: str) -> str | None:
    """Returns the key to send to ``url``.

    Raises:
        ConfigError: If the caller named a variable that is not set.
    """
    from emocaliber.evaluate.endpoint import default_api_key

    if variable is not None:
        key = os.environ.get(variable, "").strip()
        if not key:
            raise ConfigError(f"environment variable {variable} of --api-key-env is not set; set it to the key")
        return key
    return default_api_key(url)


def _local(name: str, batch_size: int) -> Responder:
    """Returns a model in memory, on the accelerator where there is one."""
    import torch

    from emocaliber.evaluate.transformers_loading import load_model, load_processor
    from emocaliber.evaluate.transformers_responder import TransformersResponder
    from emocaliber.train.quiet import quiet_libraries

    quiet_libraries()
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model = load_model(name, dtype).to(device)
    return TransformersResponder(model, load_processor(name), name=name, batch_size=batch_size)


def _summary(built: Built) -> list[str]:
    """Returns the lines that say what was kept, what was rejected, and why."""
    lines = ["build-cot:", *(f"  {count} {what}" for what, count in built.counts.items() if count)]
    lines += [f"  rejected: {count}, {reason}" for reason, count in built.rejected.items()]
    if built.texts:
        words = f"{built.texts['words_mean']:.1f} words a text, at most {built.texts['words_max']:.0f}"
        lines.append(f"  {words}, {built.texts['vocabulary']:.0f} different ones")
    if built.samples is None:
        lines.append("  no sample was kept; rejected.jsonl says why for each")
    return lines
