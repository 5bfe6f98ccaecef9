"""How large the values that meet weights become, found by running the runtime on images.

The scales of precision ``qdq`` are constants, so what they must hold has to be known beforehand. Images take the very
way they take in a prediction: preprocessing, prompt, label tree, stated confidence, and the first tokens of a reasoning
behind its cache. Only the graphs are watched.

A range ends at the 99.999th percentile of the magnitudes, by ONNX Runtime's histograms. One scale a value fits badly
where a few magnitudes are a thousand times the others, as is known of large language models (Sun et al. 2024, massive
activations): a percentile cuts them off, min-max leaves the others no levels. The
drift in ``parity.json`` tells; such a decoder stays in fp16 (``qdq-fp16``) or int8.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import HistogramCollector
from tqdm import tqdm

from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.decoding import GREEDY
from emocaliber.runtime.engine import GraphEngine, embedding_session
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.manifest import TOKENIZER_NAME
from emocaliber.runtime.onnx_runtime import onnxruntime
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.scoring import Scorer
from emocaliber.runtime.tokenization import PromptTokenizer

from .external_data import save_graph
from .graphs import DECODER, EMBED, VISION
from .static_nodes import values_at_weights

RANGE_IMAGES = 64
"""Images that ranges are found on at most."""
REASONING_TOKENS = 16
"""Tokens of a reasoning that are read for each image."""

_PERCENTILE = 99.999
_BINS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticRanges:
    """What was found."""

    images: int
    """How many images."""
    graphs: dict[str, dict[str, float]]
    """Graph to value to the magnitude at which its range ends."""


def find_ranges(bundle: Bundle, graphs: Path, samples: Sequence[Sample]) -> StaticRanges:
    """Returns the ranges of the plain float graphs, with a progress bar on standard error.

    Args:
        bundle: Tells how images are preprocessed and asked about.
        graphs: Folder of the graphs, under the exporter's names.
        samples: Images with their label sets, at least one; `RANGE_IMAGES` of them, evenly spaced, are taken.

    Raises:
        InputError: If an image cannot be read.
        ExportError: If a weight is read in a way that would leave it float.
        BackendError: If a graph fails.
    """
    places = np.linspace(0, len(samples) - 1, min(RANGE_IMAGES, len(samples))).round().astype(int)
    manifest = bundle.manifest
    with tempfile.TemporaryDirectory(prefix="emocaliber-ranges-") as folder:
        watched = {kind: _Watched(graphs / f"{kind}.onnx", Path(folder)) for kind in (VISION, DECODER)}
        engine = GraphEngine(
            name="watched",
            vision=watched[VISION],
            embed=embedding_session(graphs / f"{EMBED}.onnx"),
            decoder=watched[DECODER],
            shape=manifest.decoder,
            preprocessing=manifest.preprocessing,
        )
        scorer = Scorer(manifest, PromptTokenizer(bundle.path(TOKENIZER_NAME)), engine)
        for place in tqdm(places, desc="finding ranges", unit="image", file=sys.stderr, leave=False, disable=None):
            sample = samples[place]
            labels = sample.resolve().labels
            pixels = manifest.preprocessing.apply(decode_image(sample.image))
            seen = scorer.see(manifest.preprocessing.batch([pixels]))
            scorer.score_seen(seen, labels, "direct", GREEDY, verbalize=True)
            for _ in islice(scorer.drafts(seen, labels, GREEDY), REASONING_TOKENS):
                pass
        found = {kind: graph.ranges() for kind, graph in watched.items()}
    return StaticRanges(images=len(places), graphs=found)


class _Watched:
    """A graph that runs as ever, while histograms are made of the values that meet its weights.

    The calibrators of ONNX Runtime keep a graph's own outputs from the caller, who needs keys and values to go on, and
    watch products of two activations too, whose values are as many as patches squared; their histograms do neither.
    """

    def __init__(self, graph: Path, folder: Path) -> None:
        model = onnx.load(graph)
        self._values = values_at_weights(model, graph.name)
        inputs = {port.name for port in model.graph.input}
        self._inner = [value for value in self._values if value not in inputs]
        float_of_any_shape = [onnx.helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, None) for v in self._inner]
        model.graph.output.extend(float_of_any_shape)
        save_graph(model, folder / graph.name)
        self._session = onnxruntime.InferenceSession(str(folder / graph.name), providers=["CPUExecutionProvider"])
        self._histograms = HistogramCollector(
            method="percentile",
            symmetric=True,
            num_bins=_BINS,
            num_quantized_bins=None,
            percentile=_PERCENTILE,
            scenario=None,
        )

    def run(self, outputs: Sequence[str], feed: dict[str, NDArray[Any]]) -> list[Any]:
        """Returns the named outputs."""
        results: list[Any] = self._session.run([*outputs, *self._inner], feed)
        inner = dict(zip(self._inner, results[len(outputs) :], strict=True))
        self._histograms.collect_absolute_value({value: inner.get(value, feed.get(value)) for value in self._values})
        return results[: len(outputs)]

    def ranges(self) -> dict[str, float]:
        """Returns where the range of each value ends."""
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how many bins there are
            found = self._histograms.compute_collection_result()
        return {value: float(max(abs(low), abs(high))) for value, (low, high, *_) in found.items()}
