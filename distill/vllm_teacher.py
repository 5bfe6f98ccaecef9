"""A teacher behind vLLM's offline API: reasonings sampled in one batch, labels scored by prompt log-probabilities.

Written after vLLM's documentation and sources (0.8 and later) and tested with a stand-in of the same API; it has never
been run with vLLM itself. A label costs one whole prompt: where prompt log-probabilities are asked for, vLLM takes no
notice of its prefix cache. `emocaliber.evaluate.transformers_model.TransformersModel` scores them all in one pass.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from emocaliber.evaluate.responders import conversation
from emocaliber.evaluate.transformers_loading import transformers_name
from emocaliber.runtime.calibration import softmax
from emocaliber.runtime.decoding import GREEDY, Sampling
from emocaliber.runtime.errors import BackendError, DependencyError
from emocaliber.runtime.grammar import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    CONFIDENCE_CLOSE,
    CONFIDENCE_GRID,
    CONFIDENCE_OPEN,
    THINK_CLOSE,
    Mode,
)
from emocaliber.runtime.images import ImageSource, decode_image
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.scoring import Scored

Engine = Literal["transformers", "vllm"]


def choose_engine(engine: Literal["auto", "transformers", "vllm"], *, built: bool) -> Engine:
    """Returns which engine the teacher runs on.

    Args:
        engine: What the recipe says.
        built: Whether the teacher was built from scratch; vLLM is chosen for published models alone.

    Raises:
        BackendError: If vLLM was asked for and cannot run here.
    """
    missing = [] if importlib.util.find_spec("vllm") else ["vLLM is not installed (pip install vllm)"]
    if not torch.cuda.is_available():
        missing.append("there is no CUDA device")
    if engine == "vllm" and missing:
        raise BackendError(
            f"collect.engine is 'vllm', but {' and '.join(missing)}; or say --set collect.engine=transformers, which "
            f"needs neither"
        )
    if engine == "transformers" or missing or (engine == "auto" and built):
        return "transformers"
    return "vllm"


def open_vllm(
    path: str | Path,
    processor: Any,
    template: PromptTemplate,
    max_new_tokens: int,
    precision: str,
    limits: Mapping[str, int],
) -> VllmTeacher:
    """Returns the teacher at ``path``, loaded by vLLM.

    Args:
        path: A folder, or ``hf://owner/name``.
        processor: Its processor, of which only the chat template is used; vLLM reads the image settings of the folder.
        template: Instructions.
        max_new_tokens: Longest reasoning.
        precision: Type of the weights, ``fp32`` or ``bf16``.
        limits: ``min_pixels`` and ``max_pixels`` of an image where they are not the folder's own.

    Raises:
        DependencyError: If vLLM is not installed.
        BackendError: If it cannot load the model.
    """
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise DependencyError(f"collect.engine is 'vllm', but vLLM is not installed ({error})") from error
    try:
        dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
        engine = LLM(
            model=transformers_name(path),
            dtype=dtype,
            limit_mm_per_prompt={"image": 1},
            mm_processor_kwargs=dict(limits) or None,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BackendError(f"vLLM cannot load {path} ({error}); or say --set collect.engine=transformers") from error
    return VllmTeacher(engine, SamplingParams, processor, template, max_new_tokens)


class VllmTeacher:
    """Scores images as `emocaliber.distill.traces.Teacher` says.

    A reasoning is scored as its text, which may be cut into other tokens than it was written in.
    """

    def __init__(
        self,
        engine: Any,
        parameters: Callable[..., Any],
        processor: Any,
        template: PromptTemplate,
        max_new_tokens: int,
    ) -> None:
        """Takes an engine that is loaded.

        Args:
            engine: ``vllm.LLM``.
            parameters: ``vllm.SamplingParams``.
            processor: Of the model; it knows the chat template and the special tokens.
            template: Instructions.
            max_new_tokens: Longest reasoning.
        """
        self._engine, self._parameters = engine, parameters
        self._processor, self._template, self._budget = processor, template, max_new_tokens

    def score(
        self, images: Sequence[ImageSource], labels: tuple[str, ...], mode: Mode, sampling: Sampling = GREEDY
    ) -> Scored:
        """Returns scores, stated confidences and, in reason mode, texts of N images; see `Teacher`.

        Raises:
            InputError: If an image cannot be read.
            BackendError: If vLLM does not return what was asked for.
        """
        begun = time.perf_counter()
        pictures = [Image.fromarray(decode_image(image)) for image in images]
        prompts = [self._prompt(labels, mode)] * len(pictures)
        texts = None
        if mode == "reason":
            written = self._reasonings(prompts, pictures, sampling)
            prompts = [prompt + text for prompt, text in zip(prompts, written, strict=True)]
            texts = tuple((text,) for text in written)
        scores = self._likelihoods(prompts, pictures, [f"{ANSWER_OPEN}{label}{ANSWER_CLOSE}" for label in labels])
        answers = [f"{ANSWER_OPEN}{labels[best]}{ANSWER_CLOSE}" for best in scores.argmax(axis=1)]
        told = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        grid = [f"{CONFIDENCE_OPEN}{value:.2f}{CONFIDENCE_CLOSE}" for value in CONFIDENCE_GRID]
        stated = softmax(self._likelihoods(told, pictures, grid)) @ np.array(CONFIDENCE_GRID)
        spent = 1e3 * (time.perf_counter() - begun)
        return Scored(label_scores=scores[:, None], verbalized=stated, texts=texts, vision_ms=0.0, text_ms=spent)

    def _prompt(self, labels: tuple[str, ...], mode: Mode) -> str:
        turns = conversation(
            self._template.instruction(labels, mode),
            system=self._template.system,
            image_first=self._template.image_first,
        )
        text: str = self._processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return text

    def _reasonings(self, prompts: Sequence[str], pictures: Sequence[Image.Image], sampling: Sampling) -> list[str]:
        """Returns one reasoning for each prompt, ``</think>`` included."""
        tokenizer = self._processor.tokenizer
        # A token of an image in a text would be taken for an image when the text is scored.
        never = {int(token) for token in tokenizer.all_special_ids} - {tokenizer.eos_token_id}
        # vLLM draws by one number a request; the images' own are mixed with the seed as numpy mixes them.
        seeds = [
            int(np.random.SeedSequence([sampling.seed, own]).generate_state(1)[0]) for own in sampling.image_seeds
        ] or [sampling.seed] * len(prompts)
        parameters = [
            self._parameters(
                temperature=sampling.effective_temperature,
                top_p=sampling.top_p,
                seed=seed,
                max_tokens=self._budget,
                stop=[THINK_CLOSE, ANSWER_OPEN],
                skip_special_tokens=False,
                logit_bias=dict.fromkeys(sorted(never), -100.0),
            )
            for seed in seeds
        ]
        outputs = self._generate(prompts, pictures, parameters)
        return [output.outputs[0].text.removesuffix(tokenizer.eos_token) + THINK_CLOSE for output in outputs]

    def _likelihoods(
        self, prompts: Sequence[str], pictures: Sequence[Image.Image], endings: Sequence[str]
    ) -> NDArray[np.float64]:
        """Returns (N, E) log-likelihoods of each ending after each prompt, without the tokens that all begin with."""
        asked = [prompt + ending for prompt in prompts for ending in endings]
        shown = [picture for picture in pictures for _ in endings]
        parameters = self._parameters(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        outputs = self._generate(asked, shown, [parameters] * len(asked))
        rows = [outputs[start : start + len(endings)] for start in range(0, len(outputs), len(endings))]
        return np.array([_after_the_common(row) for row in rows])

    def _generate(
        self, prompts: Sequence[str], pictures: Sequence[Image.Image], parameters: Sequence[Any]
    ) -> list[Any]:
        requests = [
            {"prompt": prompt, "multi_modal_data": {"image": picture}}
            for prompt, picture in zip(prompts, pictures, strict=True)
        ]
        outputs: list[Any] = self._engine.generate(requests, list(parameters), use_tqdm=False)
        return outputs


def _after_the_common(outputs: Sequence[Any]) -> list[float]:
    """Returns the log-likelihood of each prompt's tokens from the first on in which the prompts differ.

    Raises:
        BackendError: If a prompt came back without its tokens' log-probabilities.
    """
    columns = zip(*(output.prompt_token_ids for output in outputs), strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda tokens: len(set(tokens)) == 1, columns))
    sums = []
    for output in outputs:
        ids, given = output.prompt_token_ids, output.prompt_logprobs
        if given is None or len(given) != len(ids):
            raise BackendError(f"vLLM returned {len(given or ())} log-probabilities for a prompt of {len(ids)} tokens")
        tail = [given[place].get(ids[place]) for place in range(common, len(ids))]
        if None in tail:
            raise BackendError("vLLM returned log-probabilities of other tokens than the prompt's")
        sums.append(float(sum(entry.logprob for entry in tail)))
    return sums
