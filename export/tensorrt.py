"""TensorRT engines of a bundle, built on the device that will run them. Needs TensorRT, and neither torch nor onnx.

A decoder has three optimisation profiles: ``prefill`` reads a prompt behind a short past or none, ``decode`` one more
token, ``tree`` the labels behind a long past. Networks are strongly typed: an engine computes in the types its graph
has. Graphs with operators of ONNX Runtime alone (weight-only 8 and 4 bits) are refused by TensorRT's parser.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.errors import ArtifactError, ExportError
from emocaliber.runtime.files import atomic_write, staged
from emocaliber.runtime.manifest import Manifest
from emocaliber.runtime.patches import PatchPreprocessing
from emocaliber.runtime.tensorrt.bindings import Target, collecting_logger
from emocaliber.runtime.tensorrt.cache import (
    DECODE,
    DECODER_NAME,
    PREFILL,
    TREE,
    VISION_NAME,
    EngineKey,
    EngineLimits,
    cache_folder,
    read_record,
    write_record,
)

MAX_LOGIT_ROWS = 256
"""Tokens of a pass whose logits are read at most: one for each inner node of a label tree, and its root."""

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, typical and largest shape of an input."""
Profile = Mapping[str, Range]
"""The range of every input, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What became of one precision."""

    folder: Path
    """Where its engines stand."""
    size_bytes: int
    """Of both engine files."""
    seconds: float | None
    """Time of the build; None if the engines stood there already."""


class UnsupportedGraphError(ExportError):
    """A graph that TensorRT cannot read; the message names what it lacks."""


def build_engines(
    bundle: Bundle,
    precision: str,
    *,
    library: Any,
    target: Target,
    limits: EngineLimits | None = None,
    rebuild: bool = False,
) -> Built:
    """Returns where the engines of one precision stand, built now unless they stand there already.

    Args:
        bundle: The bundle, in a folder.
        precision: One of its precisions.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        target: The GPU to build for.
        limits: Largest inputs; engines with other limits are built anew.
        rebuild: Whether engines that stand there are built anew all the same.

    Raises:
        UnsupportedGraphError: If a graph has operators TensorRT does not know.
        ExportError: If TensorRT fails; nothing then stands where the engines would.
    """
    limits = limits or EngineLimits()
    key = EngineKey.of(bundle, precision, target)
    folder = cache_folder(bundle) / key.digest
    if not rebuild and _is_up_to_date(folder, limits):
        return Built(folder=folder, size_bytes=_size_bytes(folder), seconds=None)
    graphs, shapes = bundle.manifest.precisions[precision], bundle.manifest
    work = {
        VISION_NAME: (bundle.path(graphs.vision_encoder), [vision_profile(shapes, limits)]),
        DECODER_NAME: (bundle.path(graphs.decoder), list(decoder_profiles(shapes, limits).values())),
    }
    timings = cache_folder(bundle) / f"{target.package}-{target.package_version}-{target.compute_capability}.timings"
    started = time.monotonic()
    networks = {name: Network(library, graph) for name, (graph, _) in work.items()}
    with staged(folder) as partial:
        for name, (_, profiles) in work.items():
            (partial / name).write_bytes(networks.pop(name).build(profiles, target=target, timings=timings))
        write_record(partial, key, limits)
    return Built(folder=folder, size_bytes=_size_bytes(folder), seconds=time.monotonic() - started)


def vision_profile(manifest: Manifest, limits: EngineLimits) -> Profile:
    """Returns the shapes of the vision encoder: tiles of one size, or the patches of one image of any size."""
    pixels = manifest.preprocessing
    if not isinstance(pixels, PatchPreprocessing):
        tile = (3, pixels.tile_size, pixels.tile_size)
        return {"pixel_values": ((1, *tile), (1, *tile), (limits.batch, *tile))}
    merge = pixels.merge_size**2
    counts = [merge * tokens for tokens in (1, max(1, pixels.max_tokens // 2), pixels.max_tokens)]
    widths = {"pixel_values": (3 * pixels.temporal_patch_size * pixels.patch_size**2,), "window_ids": ()}
    widths |= {"position_ids": (2,), "interpolation_indices": (4,), "interpolation_weights": (4,)}
    low, usual, high = counts
    return {
        name: ((low, *widths[name]), (usual, *widths[name]), (high, *widths[name]))
        for name in ("pixel_values", *pixels.grid_inputs)
    }


def embed_profile(limits: EngineLimits) -> Profile:
    """Returns the shapes of the embedding table."""
    return {"input_ids": ((1, 1), (1, 16), (limits.batch, limits.text_tokens))}


def decoder_profiles(manifest: Manifest, limits: EngineLimits) -> dict[str, Profile]:
    """Returns the shapes of each of `PROFILES`, by batch, new tokens, tokens before and rows of logits."""
    pixels, count = manifest.preprocessing, manifest.image_block.count
    image = pixels.max_tokens if isinstance(pixels, PatchPreprocessing) else count or 0
    text, rows = limits.text_tokens, min(limits.text_tokens, MAX_LOGIT_ROWS)
    past = min(manifest.decoder.max_positions, image + 2 * text + manifest.max_new_tokens)
    sizes = {
        PREFILL: ((1, 1, 0, 1), (1, image + text // 8, text // 8, 1), (limits.batch, image + text, text, rows)),
        DECODE: ((1, 1, 1, 1), (1, 1, past // 2, 1), (limits.batch, 1, past, 1)),
        TREE: ((1, 2, 1, 1), (1, 16, past // 2, 8), (limits.batch, text, past, rows)),
    }
    return {name: _decoder_profile(manifest, *ranges) for name, ranges in sizes.items()}


def _decoder_profile(manifest: Manifest, *ranges: tuple[int, int, int, int]) -> Profile:
    every = [_decoder_shapes(manifest, *sizes) for sizes in ranges]
    return {name: (every[0][name], every[1][name], every[2][name]) for name in every[0]}


def _decoder_shapes(manifest: Manifest, batch: int, new: int, past: int, rows: int) -> dict[str, tuple[int, ...]]:
    shape = manifest.decoder
    axes = (shape.position_axes,) if shape.position_axes > 1 else ()
    shapes: dict[str, tuple[int, ...]] = {
        "inputs_embeds": (batch, new, shape.hidden_size),
        "attention_mask": (batch, 1, new, past + new),
        "position_ids": (*axes, batch, new),
        "logit_rows": (rows,),
    }
    state = (batch, shape.num_kv_heads, past, shape.head_dim)
    shapes |= {f"past_key_values.{n}.{part}": state for n in range(shape.num_layers) for part in ("key", "value")}
    if shape.deepstack_layers:
        shapes["deepstack_embeds"] = (shape.deepstack_layers, batch, new, shape.hidden_size)
    return shapes


class Network:
    """One graph as TensorRT has read it."""

    def __init__(self, library: Any, graph: Path) -> None:
        """Reads the graph, with the weights beside it.

        Raises:
            UnsupportedGraphError: If TensorRT cannot read it.
        """
        self._library, self._name, self._logger = library, graph.name, collecting_logger(library)
        self._builder = library.Builder(self._logger)
        typed = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # no choice in later releases
        self._network = self._builder.create_network(0 if typed is None else 1 << int(typed))
        self._parser = library.OnnxParser(self._network, self._logger)
        if not self._parser.parse_from_file(str(graph)):
            faults = [self._parser.get_error(place) for place in range(self._parser.num_errors)]
            told = dict.fromkeys(f"{fault.node_operator()}: {fault.desc().splitlines()[0]}" for fault in faults)
            raise UnsupportedGraphError(
                f"{library.__name__} {library.__version__} cannot read {graph.name}: "
                f"{'; '.join(told) or 'no reason given'}"
            )

    def build(self, profiles: Sequence[Profile], *, target: Target, timings: Path | None = None) -> bytes:
        """Returns the serialised engine with these profiles, in their order.

        Args:
            profiles: Shapes of every input.
            target: The GPU to build for.
            timings: A file with what TensorRT measured in earlier builds; brought up to date.

        Raises:
            ExportError: If TensorRT refuses a profile or cannot build.
        """
        config = self._builder.create_builder_config()
        rounding = getattr(self._library.BuilderFlag, "TF32", None)
        if rounding is not None:
            config.clear_flag(rounding)  # on by default: products of float32 with the mantissa of half precision
        for ranges in profiles:
            profile = self._builder.create_optimization_profile()
            for name, (low, usual, high) in ranges.items():
                profile.set_shape(name, low, usual, high)
            if config.add_optimization_profile(profile) < 0:
                raise ExportError(self._failure(f"refuses the shapes {dict(ranges)}"))
        if target.package == "tensorrt_rtx":
            config.num_compute_capabilities = 1
            name = f"SM{target.compute_capability.replace('.', '')}"
            config.set_compute_capability(self._library.ComputeCapability.__members__[name], 0)
        # TensorRT-RTX measures nothing when it builds.
        cache = _timing_cache(config, timings) if target.package == "tensorrt" else None
        bars = progress_bars(self._library, self._name)
        if bars is not None:
            config.progress_monitor = bars
        try:
            plan = self._builder.build_serialized_network(self._network, config)
        finally:
            if bars is not None:
                bars.close()
        if plan is None:
            raise ExportError(self._failure("cannot build an engine"))
        if cache is not None and timings is not None:
            atomic_write(timings, bytes(cache.serialize()))
        return bytes(plan)

    def _failure(self, what: str) -> str:
        library = self._library
        told = "; ".join(self._logger.errors[-3:]) or "no reason given"
        return f"{library.__name__} {library.__version__} {what} from {self._name}: {told}"


def progress_bars(library: Any, title: str) -> Any:
    """Returns a progress monitor that draws a bar on standard error; None where the library has no monitors."""
    base = getattr(library, "IProgressMonitor", None)
    if base is None:
        return None

    class Bars(base):  # type: ignore[misc, valid-type]
        """One bar for the phases that are part of no other; TensorRT calls from several threads."""

        def __init__(self) -> None:
            super().__init__()
            self._bars: dict[str, Any] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self._bars[phase] = tqdm(total=steps, desc=f"{title}: {phase}", leave=False, disable=None)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self._bars:
                self._bars[phase].update(step + 1 - self._bars[phase].n)
            return True

        def phase_finish(self, phase: str) -> None:
            if phase in self._bars:
                self._bars.pop(phase).close()

        def close(self) -> None:
            for phase in list(self._bars):
                self.phase_finish(phase)

    return Bars()


def _timing_cache(config: Any, timings: Path | None) -> Any:
    """Returns the timing cache the build will use and fill, empty where the stored one is not accepted."""
    stored = timings.read_bytes() if timings is not None and timings.is_file() else b""
    for content in dict.fromkeys((stored, b"")):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _is_up_to_date(folder: Path, limits: EngineLimits) -> bool:
    """Returns whether whole engines with these limits stand there; damaged ones are built anew."""
    try:
        return folder.is_dir() and read_record(folder).limits == limits
    except ArtifactError:
        return False


def _size_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in (VISION_NAME, DECODER_NAME))
