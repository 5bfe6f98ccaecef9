"""Other engines on the same weights. None is a dependency: what is not installed is not run, and the report says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from competitors import Stage, Work, engine_stages
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import Idefics3ForConditionalGeneration, LlamaForCausalLM, PreTrainedTokenizerFast

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.engine import GraphEngine

RIVALS = {
    "OpenVINO": ("openvino",),
    "OpenVINO int8": ("openvino", "nncf"),
    "genai int8": ("onnxruntime_genai",),
    "genai int4": ("onnxruntime_genai",),
}
"""Modules that each needs."""


class OpenVINOGraph:
    """One graph in OpenVINO, as `GraphEngine` runs it."""

    def __init__(self, core: Any, graph: Any, threads: int) -> None:
        hints = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        self._request = core.compile_model(graph, "CPU", hints).create_infer_request()

    def run(self, outputs: Sequence[str], feed: dict[str, NDArray[Any]]) -> list[Any]:
        """Returns the named outputs, copied: the next call overwrites OpenVINO's own."""
        found = self._request.infer(feed, share_inputs=True)
        return [found[name] for name in outputs]


def openvino(bundle: Path, work: Work, threads: int, *, int8: bool) -> dict[str, Stage]:
    """Returns the stages of OpenVINO on the bundle's fp32 graphs, in the arithmetic it chooses for this processor.

    Args:
        bundle: Folder of the bundle.
        work: What to do.
        threads: Threads to use.
        int8: Whether NNCF quantises first: the vision encoder statically, calibrated on the one image, and the weights
            of the decoder and of the embedding.
    """
    import openvino as ov

    core, opened = ov.Core(), Bundle.open(bundle, verify=False)
    files = opened.manifest.precisions["fp32"]
    vision, embed, decoder = (
        core.read_model(opened.path(name)) for name in (files.vision_encoder, files.embed_tokens, files.decoder)
    )
    if int8:
        import nncf

        images = nncf.Dataset([{"pixel_values": work.pixels}])
        vision = nncf.quantize(vision, images, subset_size=1, model_type=nncf.ModelType.TRANSFORMER)
        embed, decoder = nncf.compress_weights(embed), nncf.compress_weights(decoder)
    engine = GraphEngine(
        name="openvino-cpu",
        vision=OpenVINOGraph(core, vision, threads),
        embed=OpenVINOGraph(core, embed, threads),
        decoder=OpenVINOGraph(core, decoder, threads),
        shape=opened.manifest.decoder,
        preprocessing=opened.manifest.preprocessing,
    )
    return engine_stages(opened, "fp32", engine, work)


def genai(bundle: Path, weights: Path, precision: str, work: Work, threads: int) -> dict[str, Stage]:
    """Returns the stages of onnxruntime-genai on a decoder that its own builder makes, once, beside the bundle.

    It reads token ids: where the image stands, the rows of the image token.
    """
    import onnxruntime_genai as og

    folder = bundle.parent / f"genai-{precision}"
    if not (folder / "genai_config.json").is_file():
        _build_genai(bundle, weights, precision, folder)
    config = og.Config(str(folder))
    options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    prompt = np.array(work.prompt, dtype=np.int32)
    token = prompt[-1:]

    def generator() -> Any:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(prompt) + work.past, do_sample=False)
        return og.Generator(model, parameters)

    reader, writer = generator(), generator()
    writer.append_tokens(np.resize(prompt, work.past))

    def read(held: Any, tokens: NDArray[np.int32], past: int) -> Any:
        held.rewind_to(past)
        held.append_tokens(tokens)
        return held.get_logits()

    return {"prefill": lambda: read(reader, prompt, 0), "decode": lambda: read(writer, token, work.past)}


def _build_genai(bundle: Path, weights: Path, precision: str, folder: Path) -> None:
    text = bundle.parent / "text"
    whole = Idefics3ForConditionalGeneration.from_pretrained(weights, dtype=torch.float32)
    decoder = LlamaForCausalLM(whole.config.text_config)
    decoder.model.load_state_dict(whole.model.text_model.state_dict())
    decoder.lm_head.load_state_dict(whole.lm_head.state_dict())
    decoder.save_pretrained(text)
    PreTrainedTokenizerFast(tokenizer_file=str(bundle / "tokenizer.json")).save_pretrained(text)
    words = ["-i", text, "-o", folder, "-p", precision, "-e", "cpu", "-c", bundle.parent / "genai-cache"]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *map(str, words)]
    tqdm.write(f"building {folder}", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"onnxruntime-genai's builder failed:\n{done.stderr[-2000:]}")
