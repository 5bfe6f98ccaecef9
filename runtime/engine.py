"""Engines: what runs the three graphs. The rest of the runtime sees only the `Engine` protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .denormals import CAN_FLUSH, denormals_as_zero
from .errors import ArtifactError, BackendError, InputError
from .manifest import DecoderShape
from .onnx_header import read_metadata
from .onnx_runtime import onnxruntime
from .openvino_graph import OpenVINOGraph
from .patches import PatchPreprocessing
from .preprocessing import Preprocessing
from .resident import ResidentGraph

EngineName = Literal["auto", "cpu", "openvino", "cuda", "tensorrt"]
ENGINES: tuple[EngineName, ...] = ("auto", "cpu", "openvino", "cuda", "tensorrt")

Floats32 = NDArray[np.float32]
KeyValues = tuple[Floats32, ...]
"""Keys and values by layer: key 0, value 0, key 1, …; each (B, kv_heads, P, head_dim). An engine may leave them on its
device, as what numpy can copy."""

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_REMEDIES = {
    "cuda": "pip uninstall onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]', with a driver of that CUDA",
    "tensorrt": "build engines with 'emocaliber export tensorrt BUNDLE' on this device, or install an onnxruntime-gpu "
    "built with TensorRT, and TensorRT itself",
}
_CUDA_OPTIONS = {"use_tf32": "0"}
"""On by default: products of float32 with the mantissa of half precision, which moves scores; fp16 is faster still."""
SIGNED_WEIGHTS = {"emocaliber.weights": "signed"}
"""Metadata of a graph that multiplies unsigned rows by signed weights: with AMX the quickest products of bytes."""
_UNSIGNED_WEIGHTS = ("session.x64quantprecision", "1")
"""With this, ONNX Runtime makes such weights unsigned when it loads them, which takes their memory once more."""
_EXACT_WITH = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""What Linux calls the instructions that add up such products in 32 bits; without them it is 16, which overflow."""
_NOT_FUSED = ("optimization.disable_specified_optimizers", "SkipLayerNormFusion")
"""In ONNX Runtime 1.32 an addition and a layer normalisation take a quarter of the time of the two as one operator."""
_STOP_WAITING = ("session.force_spinning_stop", "1")
"""Threads that wait for work keep a core busy for tens of milliseconds, which the next graph or another program lacks;
with this they stop at the end of a run."""
_DENORMALS_AS_ZERO = ("session.set_denormal_as_zero", "1")
"""For the threads of a session; see `denormals`."""
_QUIET = 4
"""ONNX Runtime's log level for fatal errors only; what goes wrong comes back as an exception."""


class Engine(Protocol):
    """The three graphs as functions of arrays."""

    name: str
    """What runs them, such as ``onnxruntime-cpu``."""

    def encode_images(self, pixel_values: Floats32) -> Floats32:
        """Returns (N, count, width) image features for (N, 3, T, T) pixels.

        For the families with images of any size (1, rows · columns, width) for one image's patches
        (rows, columns, merge², values). ``width`` is `DecoderShape.embed_width`: a feature, and what is added to it
        behind the first layers of the decoder.
        """

    def embed(self, ids: NDArray[np.int64]) -> Floats32:
        """Returns (B, S, width) embeddings for (B, S) token ids; nothing is added to them behind the first layers."""

    def decode(
        self,
        embeds: Floats32,
        mask: NDArray[np.bool_],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        past: KeyValues,
    ) -> tuple[Floats32, KeyValues]:
        """Returns (B, R, vocab) logits of the wanted rows, and the keys and values of past and new tokens.

        Args:
            embeds: (B, S, width), the new tokens.
            mask: (B, 1, S, P + S), True where a new token attends; columns are the past, then the new tokens.
            positions: (B, S) position of each new token; where the family has them (3, B, S) positions in time,
                height and width, of which (B, S) says that they are the same.
            rows: (R,) the new tokens whose logits are wanted.
            past: Keys and values of the P tokens before; P may be 0.
        """


class Graph(Protocol):
    """One loaded graph: a session of ONNX Runtime, or what runs as one."""

    def run(self, outputs: Sequence[str], feed: dict[str, NDArray[Any]]) -> list[Any]:
        """Returns the named outputs for all inputs."""


class GraphEngine:
    """An engine over three loaded graphs, whatever runs them: what their inputs and outputs are stands here alone."""

    def __init__(
        self,
        *,
        name: str,
        vision: Graph,
        embed: Graph,
        decoder: Graph,
        shape: DecoderShape,
        preprocessing: Preprocessing | PatchPreprocessing | None = None,
    ) -> None:
        self.name = name
        self._vision, self._embed, self._decoder = vision, embed, decoder
        self._shape = shape
        self._patches = preprocessing if isinstance(preprocessing, PatchPreprocessing) else None
        self._past_names = [
            f"past_key_values.{layer}.{part}" for layer in range(shape.num_layers) for part in ("key", "value")
        ]
        present_names = [name.replace("past_key_values", "present") for name in self._past_names]
        self._decoder_outputs = ["logits", *present_names]
        self._vision_outputs = ["image_features", *(["deepstack_features"] if shape.deepstack_layers else [])]

    def encode_images(self, pixel_values: Floats32) -> Floats32:
        """Returns (N, count, width) image features; see `Engine`."""
        if self._patches is None:
            return _run(self._vision, self._vision_outputs, {"pixel_values": pixel_values})[0]
        rows, columns, *_, values = pixel_values.shape
        feed = {"pixel_values": pixel_values.reshape(-1, values), **self._patches.grid(rows, columns)}
        features, *deepstack = _run(self._vision, self._vision_outputs, feed)
        return np.concatenate([features, *(layer for layers in deepstack for layer in layers)], axis=-1)[np.newaxis]

    def embed(self, ids: NDArray[np.int64]) -> Floats32:
        """Returns (B, S, width) embeddings; see `Engine`."""
        embeds = _run(self._embed, ["inputs_embeds"], {"input_ids": ids})[0]
        added = self._shape.embed_width - self._shape.hidden_size
        return np.pad(embeds, ((0, 0), (0, 0), (0, added))) if added else embeds

    def decode(
        self,
        embeds: Floats32,
        mask: NDArray[np.bool_],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        past: KeyValues,
    ) -> tuple[Floats32, KeyValues]:
        """Returns logits of the wanted rows, and keys and values; see `Engine`."""
        shape = self._shape
        if shape.position_axes > 1 and positions.ndim == 2:
            positions = np.repeat(positions[np.newaxis], shape.position_axes, axis=0)
        feed: dict[str, NDArray[Any]] = {"attention_mask": mask, "position_ids": positions, "logit_rows": rows}
        feed["inputs_embeds"] = np.ascontiguousarray(embeds[..., : shape.hidden_size])
        if shape.deepstack_layers:
            added = embeds[..., shape.hidden_size :].reshape(*embeds.shape[:2], -1, shape.hidden_size)
            feed["deepstack_embeds"] = np.ascontiguousarray(added.transpose(2, 0, 1, 3))
        feed.update(zip(self._past_names, past, strict=True))
        logits, *present = _run(self._decoder, self._decoder_outputs, feed)
        return logits, tuple(present)


class OnnxEngine(GraphEngine):
    """The graphs in ONNX Runtime."""

    def __init__(
        self,
        *,
        vision_encoder: Path,
        embed_tokens: Path,
        decoder: Path,
        shape: DecoderShape,
        preprocessing: Preprocessing | PatchPreprocessing | None = None,
        engine: EngineName = "auto",
        threads: int | None = None,
        prepared: Callable[[], tuple[Path, Path] | None] = lambda: None,
    ) -> None:
        """Loads the graphs.

        Args:
            vision_encoder: Graph file.
            embed_tokens: Graph file.
            decoder: Graph file.
            shape: Sizes of the decoder.
            preprocessing: How pixels are made; needed where images have sizes of their own.
            engine: ``cpu``, ``openvino``, ``cuda`` or ``tensorrt`` must come up as named; ``auto`` takes CUDA where it
                works, else the CPU. ``openvino`` runs the vision encoder; ONNX Runtime does the rest on the CPU.
            threads: Threads an operator may use; None lets ONNX Runtime choose.
            prepared: Asked where the CPU is to run them: vision encoder and decoder as `prepare_graph` left them, which
                it reads in their place, or None.

        Raises:
            InputError: If the engine is unknown or `threads` is not positive.
            BackendError: If the named engine does not come up, or a graph cannot be loaded.
            DependencyError: If the engine is ``openvino`` and is not installed.
            ArtifactError: If a graph has other inputs than the bundle format says.
        """
        if engine not in ENGINES:
            raise InputError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}, expected at least 1")
        chosen, loaded = ("cpu", None) if engine in ("cpu", "openvino") else _choose(engine, decoder, threads)
        found = prepared() if chosen == "cpu" else None
        ready = found is not None
        if found is not None:
            vision_encoder, decoder = found
        # Preparing weights takes one core a graph; what an accelerator's libraries make of that was not tried.
        with ThreadPoolExecutor(max_workers=3 if chosen == "cpu" else 1) as pool:
            slowest = pool.submit(lambda: loaded or _session(decoder, chosen, threads, ready=ready))
            if engine == "openvino":
                vision = pool.submit(OpenVINOGraph, vision_encoder, threads, in_bytes=_is_signed(vision_encoder))
            else:
                vision = pool.submit(_session, vision_encoder, chosen, threads, ready=ready)
            embed = pool.submit(embedding_session, embed_tokens)
        super().__init__(
            name="openvino" if engine == "openvino" else f"onnxruntime-{chosen}",
            vision=vision.result(),
            embed=embed.result(),
            decoder=slowest.result(),
            shape=shape,
            preprocessing=preprocessing,
        )
        grid = self._patches.grid_inputs if self._patches else ()
        _check_ports(self._vision, vision_encoder, ["pixel_values", *grid], self._vision_outputs)
        inputs = ["inputs_embeds", "attention_mask", "position_ids", "logit_rows", *self._past_names]
        inputs += ["deepstack_embeds"] if shape.deepstack_layers else []
        _check_ports(self._decoder, decoder, inputs, self._decoder_outputs)
        if chosen != "cpu":
            self._decoder = ResidentGraph(self._decoder, "cuda")


def available_engines() -> tuple[str, ...]:
    """Returns the engines that are installed; one of them may still not come up."""
    return (*_built_in(), *(["openvino"] if find_spec("openvino") is not None else []))


def _built_in() -> tuple[str, ...]:
    """Returns the engines that this ONNX Runtime was built with."""
    providers = onnxruntime.get_available_providers()
    return tuple(name for name, provider in _PROVIDERS.items() if provider in providers)


def _choose(engine: EngineName, probe: Path, threads: int | None) -> tuple[str, Any]:
    """Returns the provider to use, and the session of the probe graph on it that proved it, or None for the CPU.

    It is the named one, or for ``auto`` the best.
    """
    wanted = "cuda" if engine == "auto" else engine
    session = _on(wanted, probe, threads) if wanted in _built_in() else None
    if session is not None:
        return wanted, session
    if engine == "auto":
        return "cpu", None
    raise BackendError(
        f"engine {engine!r} did not come up: {_installed()} offers {', '.join(_built_in())}; "
        f"to get it: {_REMEDIES[wanted]}; or use --engine cpu"
    )


def _on(engine: str, probe: Path, threads: int | None) -> Any:
    """Returns a session that really runs on the engine, or None: ONNX Runtime falls back without a word."""
    # CUDA's libraries in pip's packages are on no search path; what is missing of them would be printed here.
    with redirect_stdout(StringIO()):
        onnxruntime.preload_dlls(msvc=False)
    try:
        session = _session(probe, engine, threads)
    except BackendError:
        return None
    return session if _PROVIDERS[engine] in session.get_providers() else None


def _installed() -> str:
    from importlib.metadata import distributions  # slow to import, and only needed for a message

    wanted = ("onnxruntime", "onnxruntime-gpu")
    found = sorted({dist.name for name in wanted for dist in distributions(name=name)})
    return " and ".join(found or wanted[:1]) + f" {onnxruntime.__version__}"


def embedding_session(path: Path) -> Graph:
    """Returns the embedding table, a look-up that gains nothing from an accelerator, on the CPU.

    Raises:
        BackendError: If it cannot be loaded.
        ArtifactError: If it has other inputs than the bundle format says.
    """
    session: Graph = _session(path, "cpu", 1)
    _check_ports(session, path, ["input_ids"], ["inputs_embeds"])
    return session


def prepare_graph(path: Path, target: Path) -> None:
    """Writes a graph as it is once the CPU has it loaded, large weights to ``NAME.onnx_data`` beside it.

    Raises:
        BackendError: If it cannot be loaded, or not be written.
    """
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{target.name}_data")
    _session(path, "cpu", None, options=options)
    if not target.is_file():
        raise BackendError(f"ONNX Runtime did not write {target}; is the disk full?")


def _session(path: Path, engine: str, threads: int | None, *, ready: bool = False, options: Any = None) -> Any:
    """Returns a loaded graph.

    Args:
        path: Its file.
        engine: What is to run it.
        threads: Threads an operator may use; None lets ONNX Runtime choose.
        ready: Whether `prepare_graph` wrote it, so that there is nothing to rewrite.
        options: Options of ONNX Runtime to add to.

    Raises:
        BackendError: If it cannot be loaded.
    """
    options = options or onnxruntime.SessionOptions()
    if ready:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.add_session_config_entry(*_STOP_WAITING)
    if engine == "cpu":
        options.add_session_config_entry(*_NOT_FUSED)
        # A plan of the memory for each combination of sizes: decoding has another one at every token.
        options.enable_mem_pattern = False
        if CAN_FLUSH:
            options.add_session_config_entry(*_DENORMALS_AS_ZERO)
    if _is_signed(path) and not _EXACT_WITH & processor_flags():
        options.add_session_config_entry(*_UNSIGNED_WEIGHTS)
    providers: list[Any] = [_PROVIDERS["cpu"]]
    if engine != "cpu":
        providers.insert(0, (_PROVIDERS["cuda"], _CUDA_OPTIONS))
    if engine == "tensorrt":
        providers.insert(0, _PROVIDERS["tensorrt"])
    try:
        with denormals_as_zero():  # which also puts back what the first session of a process does to this thread
            # With its own fallback it would print to standard output and try the same again.
            return onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime has a dozen unrelated error classes
        raise BackendError(f"ONNX Runtime cannot load {path.name} on {engine}: {_brief(error)}") from error


def _is_signed(path: Path) -> bool:
    return SIGNED_WEIGHTS.items() <= read_metadata(path).items()


@cache
def processor_flags() -> frozenset[str]:
    """Returns the instruction sets of an x86 processor; none where only Linux would say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(word for line in lines if line.startswith("flags") for word in line.split(":", 1)[1].split())


def _run(session: Graph, outputs: Sequence[str], feed: dict[str, NDArray[Any]]) -> list[Floats32]:
    try:
        with denormals_as_zero():
            results: list[Floats32] = session.run(outputs, feed)
    except BackendError:
        raise
    except Exception as error:  # ONNX Runtime has a dozen unrelated error classes
        shapes = ", ".join(f"{name} {value.shape}" for name, value in list(feed.items())[:4])
        raise BackendError(f"ONNX Runtime failed while running ({shapes}): {_brief(error)}") from error
    return results


def _check_ports(session: Any, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuses a graph whose inputs or outputs are not those of the bundle format."""
    for kind, expected, found in (
        ("inputs", set(inputs), {port.name for port in session.get_inputs()}),
        ("outputs", set(outputs), {port.name for port in session.get_outputs()}),
    ):
        if not expected <= found or (kind == "inputs" and found != expected):
            raise ArtifactError(
                f"graph {path.name}: {kind} missing {sorted(expected - found)}, unexpected {sorted(found - expected)}"
            )


def _brief(error: Exception) -> str:
    """Returns the first line of a foreign message, cut to a readable length."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
