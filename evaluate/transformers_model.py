"""A transformers model scored by the runtime's own code, so that its figures and a bundle's mean the same.

Families whose images all have one size pass through the runtime's scorer itself; the Qwen-VL families, whose images
have not, through `emocaliber.evaluate.qwen_scorer`, which shares its trees.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emocaliber.runtime.decoding import GREEDY, Sampling
from emocaliber.runtime.files import atomic_write
from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.images import ImageSource, decode_image
from emocaliber.runtime.manifest import BUNDLE_SCHEMA, DecoderShape, FileRecord, GraphFiles, Manifest
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.scoring import Scored, Scorer
from emocaliber.runtime.taxonomy import TAXONOMIES
from emocaliber.runtime.tokenization import PromptTokenizer

from .prompting import (
    decoder_shape,
    end_tokens,
    image_block_of,
    preprocessing_of,
    render_prompts,
    suppressed_tokens,
    tokenizer_json,
)
from .qwen_scorer import QwenScorer
from .torch_engine import TorchEngine
from .transformers_loading import QWEN_FAMILIES

_UNWRITTEN = FileRecord(sha256="0" * 64, size_bytes=0)


class TransformersModel:
    """Scores images with a transformers model in memory."""

    def __init__(self, model: Any, processor: Any, template: PromptTemplate, max_new_tokens: int) -> None:
        """Prepares ``model``, which must be in eval mode and is not copied.

        Args:
            model: Idefics3/SmolVLM model, or one of the Qwen-VL families.
            processor: Its processor.
            template: Instructions.
            max_new_tokens: Longest reasoning.

        Raises:
            ExportError: If the model or processor is not supported.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "tokenizer.json")
            atomic_write(path, tokenizer_json(processor.tokenizer))
            tokenizer = PromptTokenizer(path)
        qwen = model.config.model_type in QWEN_FAMILIES
        self._scorer: QwenScorer | _TileScorer = (
            QwenScorer(model, processor, tokenizer, template, max_new_tokens)
            if qwen
            else _TileScorer(_manifest_of(model, processor, template, max_new_tokens), tokenizer, model)
        )

    def score(
        self,
        images: Sequence[ImageSource],
        labels: tuple[str, ...],
        mode: Mode,
        sampling: Sampling = GREEDY,
        *,
        verbalize: bool = True,
    ) -> Scored:
        """Returns the raw scores of one batch of N images.

        Args:
            images: Paths, encoded bytes, Pillow images, or uint8 (H, W, 3) RGB arrays.
            labels: Candidates, the same for all of them.
            mode: Whether the model reasons first.
            sampling: How reasonings are drawn.
            verbalize: Whether the stated confidence is read too.

        Raises:
            InputError: If an image cannot be read.
        """
        return self._scorer.score(images, labels, mode, sampling, verbalize=verbalize)


class _TileScorer:
    """The runtime's own scorer, over an image as one square tile."""

    def __init__(self, manifest: Manifest, tokenizer: PromptTokenizer, model: Any) -> None:
        self._scorer = Scorer(manifest, tokenizer, TorchEngine(model))
        self._preprocessing = manifest.preprocessing

    def score(
        self, images: Sequence[ImageSource], labels: tuple[str, ...], mode: Mode, sampling: Sampling, *, verbalize: bool
    ) -> Scored:
        """Returns the raw scores of N images; see `TransformersModel.score`."""
        pixels = np.concatenate([self._preprocessing.apply(decode_image(image)) for image in images])
        return self._scorer.score(pixels, labels, mode, sampling, verbalize=verbalize)


def _manifest_of(model: Any, processor: Any, template: PromptTemplate, max_new_tokens: int) -> Manifest:
    """Returns what a bundle of this model would say of itself, but for its files, which do not exist."""
    block = image_block_of(processor)
    ends = end_tokens(model, processor.tokenizer)
    graphs = GraphFiles(vision_encoder="vision", embed_tokens="embed", decoder="decoder")
    names = (*graphs.names(), "tokenizer.json", "calibration.json", "MODEL_CARD.md")
    return Manifest(
        schema_version=BUNDLE_SCHEMA,
        name="in-memory",
        version="0",
        family="idefics3",
        precisions={"torch": graphs},
        default_precision="torch",
        preprocessing=preprocessing_of(processor.image_processor, model.config.vision_config.image_size),
        image_block=block,
        prompts=render_prompts(processor, template),
        decoder=DecoderShape(**decoder_shape(model)),
        end_token_ids=ends,
        suppressed_token_ids=suppressed_tokens(processor, block, ends),
        max_new_tokens=max_new_tokens,
        taxonomies={name: taxonomy.labels for name, taxonomy in TAXONOMIES.items()},
        default_taxonomy=next(iter(TAXONOMIES)),
        files=dict.fromkeys(names, _UNWRITTEN),
        provenance={},
        license="unpublished",
    )
