"""Other engines on the same weights. None is a dependency: what is not installed is not run, and the report says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
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
    "llama.cpp Q8": ("llama_cpp", "gguf"),
    "llama.cpp Q4": ("llama_cpp", "gguf"),
}
"""Modules that each needs."""
_GGUF_NAMES = {
    "embed_tokens.weight": "token_embd", "norm.weight": "output_norm", "input_layernorm.weight": "attn_norm",
    "post_attention_layernorm.weight": "ffn_norm", "self_attn.q_proj.weight": "attn_q",
    "self_attn.k_proj.weight": "attn_k", "self_attn.v_proj.weight": "attn_v", "self_attn.o_proj.weight": "attn_output",
    "mlp.gate_proj.weight": "ffn_gate", "mlp.up_proj.weight": "ffn_up", "mlp.down_proj.weight": "ffn_down",
}  # fmt: skip
"""What GGUF calls the decoder's weights."""


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


def llama_cpp(bundle: Path, weights: Path, bits: str, work: Work, threads: int) -> dict[str, Stage]:
    """Returns the stages of llama.cpp on the decoder as a GGUF file, made once, beside the bundle.

    It reads token ids: where the image stands, the rows of the image token.
    """
    import llama_cpp as lib

    path = bundle.parent / f"llama-{bits.lower()}.gguf"
    if not path.is_file():
        _build_gguf(weights, bits, path)
    quiet = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(quiet, None)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = 512
    options.n_threads = options.n_threads_batch = threads

    def reader(past: Sequence[int]) -> Callable[[Sequence[int]], None]:
        context = lib.llama_init_from_model(model, options)
        memory = lib.llama_get_memory(context)

        def read(tokens: Sequence[int], start: int = len(past)) -> None:
            lib.llama_memory_seq_rm(memory, 0, start, -1)
            ids = (lib.llama_token * len(tokens))(*tokens)
            if lib.llama_decode(context, lib.llama_batch_get_one(ids, len(tokens))) != 0:
                raise SystemExit("llama.cpp failed to read the prompt")
            lib.llama_get_logits_ith(context, -1)

        if past:
            read(past, 0)
        read.held = quiet  # type: ignore[attr-defined]  # the library calls it as long as this is used
        return read

    whole, longer = reader(()), reader(np.resize(np.array(work.prompt), work.past).tolist())
    return {"prefill": lambda: whole(work.prompt), "decode": lambda: longer(work.prompt[-1:])}


def _build_gguf(weights: Path, bits: str, path: Path) -> None:
    """Writes the decoder for llama.cpp, products in 8 or 4 bits; the vocabulary in 8, as this package has it."""
    from gguf import GGMLQuantizationType as Kind
    from gguf import GGUFWriter
    from gguf.quants import quantize

    whole = Idefics3ForConditionalGeneration.from_pretrained(weights, dtype=torch.float32)
    config, state = whole.config.text_config, whole.model.text_model.state_dict()
    width = config.hidden_size // config.num_attention_heads
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in state.items():
        layer, _, part = name.removeprefix("layers.").partition(".")
        values = tensor.numpy()
        if part in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):  # it turns neighbours, not halves
            values = values.reshape(-1, 2, width // 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        whole_model = name in _GGUF_NAMES
        target = _GGUF_NAMES[name] if whole_model else f"blk.{layer}.{_GGUF_NAMES[part]}"
        kind = Kind.F32 if values.ndim == 1 else Kind.Q8_0 if whole_model or bits == "Q8" else Kind.Q4_0
        writer.add_tensor(f"{target}.weight", quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
