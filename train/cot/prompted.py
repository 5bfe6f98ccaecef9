"""Reasoning from a strong image-text model that is told the answer, kept only if it convinces a judge that is not.

A response passes four filters: the strict grammar; the answer it was told; no word that gives away that it was told;
and a blind second pass, in which a judge sees the image and the reasoning, every word for a candidate blanked, and has
to reach the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from emocaliber.evaluate.responders import Drawing, Request, Responder
from emocaliber.runtime.errors import ConfigError, InputError, ResponseError
from emocaliber.runtime.grammar import parse_response, render_reasoning
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.prompts import join_labels
from emocaliber.runtime.samples import Sample

from .build import UNREADABLE, Attempt, Outcome
from .words import names_candidate

BLANK = "___"

WRITE_PROMPT = (
    "People who were shown this image felt {answer}. Write down how one comes to that feeling, out of [{labels}], from "
    "the image alone. Tell only what can be seen. Write as someone who looks at the image and does not know yet what "
    "others felt: never say that the feeling was told, given or labelled, and name it in the analysis first.\n"
    "Respond with exactly these parts, each one or two short sentences without angle brackets, and nothing else:\n"
    "<think><element>what stands out: objects, colours, light</element><human>the people, their faces and postures, or "
    "that there are none</human><context>place, time, situation</context><interaction>how people and things relate"
    "</interaction><analysis>what speaks for the feeling, what speaks for others, and which is most likely</analysis>"
    "</think><answer>{answer}</answer>"
)
"""What the writer is asked; ``{answer}`` and ``{labels}`` are filled in."""

JUDGE_PROMPT = (
    "Someone looked at this image and wrote down what it evokes; every word that names a feeling of the list is "
    "blanked as {blank}:\n{reasoning}\nWhich emotion might this image evoke? Choose the likeliest from [{labels}]. "
    "Respond in the format: <answer>your final answer</answer>"
)
"""What the judge is asked; ``{reasoning}`` and ``{labels}`` are filled in."""

GRAMMAR, OTHER_ANSWER, GIVEN_AWAY, NOT_CONVINCING, REFUSED = (
    "breaks the grammar",
    "answers otherwise than it was told",
    "gives away that the answer was told",
    "the blind second pass answers otherwise",
    "the model refuses the request",
)

_GIVEN_AWAY = re.compile(
    r"ground[ -]?truth|\bannotat|"
    r"\b(?:emotion|feeling|assigned|given|provided|target|true|correct|gold)\s+label|\blabel(?:l?ed)?\s+(?:as|is|says)\b|"
    r"\b(?:given|provided|stated|specified|assigned|target|expected|correct|supposed|told|prescribed)\s+"
    r"(?:\w+\s+)?(?:emotion|feeling|answer|response|choice)|"
    r"\b(?:emotion|feeling|answer)\b[^.;]{0,20}\b(?:was|is|as)\s+(?:given|provided|stated|specified|told)|"
    r"\bas\s+(?:given|provided|told|instructed|specified|stated)\b|\bI\s+(?:was|am|have been)\s+(?:given|told|asked)\b|"
    r"\bviewers? (?:reported|said|felt)|people who (?:saw|were shown)",
    re.IGNORECASE,
)


_Result = dict[str, str] | Attempt | InputError
"""What became of one response: its reasoning, or a response refused by a filter, or a request refused by the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSettings:
    """How a model is asked for reasoning."""

    attempts: int = 3
    """Responses asked for, one after another and with another seed each, before a sample is rejected."""
    temperature: float = 0.7
    """Temperature of the writer; the judge always takes its most probable answer."""
    max_new_tokens: int = 512
    """Longest response, in tokens."""
    seed: int = 0
    """Seed of the first attempt; the next has the next one."""
    chunk: int = 32
    """Samples asked about at once."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.chunk < 1:
            raise ConfigError(f"attempts are {self.attempts} and the chunk is {self.chunk}, expected at least 1")
        if self.attempts > 1 and self.temperature == 0.0:
            raise ConfigError(f"{self.attempts} attempts at temperature 0 would be the same response each time")
        self.drawing(0)

    def drawing(self, attempt: int) -> Drawing:
        """Returns how the response of an attempt is drawn, counted from 0."""
        return Drawing(temperature=self.temperature, max_new_tokens=self.max_new_tokens, seed=self.seed + attempt)


class ModelWriter:
    """Writes five parts with a model, as far as its responses pass the filters."""

    def __init__(
        self, writer: Responder, judge: Responder, settings: PromptSettings, record: dict[str, Any] | None = None
    ) -> None:
        """Prepares the writer.

        Args:
            writer: Is told the answer and writes the reasoning.
            judge: Has to reach the answer without being told.
            settings: How they are asked.
            record: What else the text depends on, for the record, such as the size images are sent in.
        """
        self._writer = writer
        self._judge = judge
        self._settings = settings
        self._record = record or {}

    @property
    def chunk(self) -> int:
        """How many samples are asked about at once."""
        return self._settings.chunk

    def settings(self) -> dict[str, Any]:
        """Returns what the text depends on, the prompts included."""
        return {
            "from": "model",
            "writer": self._writer.name,
            "judge": self._judge.name,
            "attempts": self._settings.attempts,
            "temperature": self._settings.temperature,
            "max_new_tokens": self._settings.max_new_tokens,
            "seed": self._settings.seed,
            **self._record,
            "write_prompt": WRITE_PROMPT,
            "judge_prompt": JUDGE_PROMPT,
        }

    def write(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Returns the reasoning of each sample, or why no attempt passed the filters.

        Raises:
            BackendError: If a model or an endpoint fails.
        """
        faults = [_unreadable(sample) for sample in samples]
        outcomes = [Outcome(reason=UNREADABLE, detail=fault) if fault else None for fault in faults]
        attempts: list[list[Attempt]] = [[] for _ in samples]
        for number in range(self._settings.attempts):
            open_ = [place for place, outcome in enumerate(outcomes) if outcome is None]
            judged = self._attempt([samples[place] for place in open_], self._settings.drawing(number))
            for place, result in zip(open_, judged, strict=True):
                if isinstance(result, InputError):
                    outcomes[place] = Outcome(reason=REFUSED, detail=str(result), attempts=tuple(attempts[place]))
                elif isinstance(result, Attempt):
                    attempts[place].append(result)
                else:
                    outcomes[place] = Outcome(reasoning=result, attempts=tuple(attempts[place]))
        return [
            outcome or Outcome(reason=refused[-1].fault, attempts=tuple(refused))
            for outcome, refused in zip(outcomes, attempts, strict=True)
        ]

    def _attempt(self, samples: Sequence[Sample], drawing: Drawing) -> list[_Result]:
        """Returns for each sample the reasoning that passed all filters, or the response that did not, or a refusal."""
        texts = _ask(self._writer, [_write_request(sample) for sample in samples], drawing)
        results = [_screened(text, sample) for text, sample in zip(texts, samples, strict=True)]
        passed = {place: result for place, result in enumerate(results) if isinstance(result, dict)}
        requests = [_judge_request(samples[place], reasoning) for place, reasoning in passed.items()]
        verdicts = _ask(self._judge, requests, replace(drawing, temperature=0.0))
        for place, verdict in zip(passed, verdicts, strict=True):
            fault = _disagreement(verdict, samples[place])
            if fault is not None:
                results[place] = Attempt(fault=NOT_CONVINCING, detail=fault, response=str(texts[place]))
        return results


def blanked(reasoning: dict[str, str], candidates: Sequence[str]) -> dict[str, str]:
    """Returns the reasoning with `BLANK` for every word that is, or has the stem of, a candidate label."""

    def blank(found: re.Match[str]) -> str:
        return BLANK if names_candidate(found.group(), candidates) else found.group()

    return {tag: re.sub(r"\w+", blank, text) for tag, text in reasoning.items()}


def gives_away(text: str) -> str | None:
    """Returns the words that show that the writer had been told the answer, or None."""
    found = _GIVEN_AWAY.search(text)
    return None if found is None else found.group()


def _write_request(sample: Sample) -> Request:
    labels = join_labels(sample.resolve().labels)
    return Request(
        image=sample.image, instruction=WRITE_PROMPT.replace("{answer}", str(sample.answer)).replace("{labels}", labels)
    )


def _judge_request(sample: Sample, reasoning: dict[str, str]) -> Request:
    candidates = sample.resolve().labels
    fields = {
        "{blank}": BLANK,
        "{labels}": join_labels(candidates),
        "{reasoning}": render_reasoning(blanked(reasoning, candidates)),
    }
    instruction = JUDGE_PROMPT
    for name, text in fields.items():
        instruction = instruction.replace(name, text)
    return Request(image=sample.image, instruction=instruction)


def _screened(text: str | InputError, sample: Sample) -> _Result:
    """Returns the reasoning of a response that passes every filter but the second pass, or what is wrong with it."""
    if isinstance(text, InputError):
        return text
    try:
        response = parse_response(text, sample.resolve().labels, "reason", needs_confidence=False)
    except ResponseError as error:
        return Attempt(fault=GRAMMAR, detail=str(error), response=text)
    if response.answer != sample.answer:
        return Attempt(fault=OTHER_ANSWER, detail=f"{response.answer}, not {sample.answer}", response=text)
    assert response.reasoning is not None
    told = gives_away(" ".join(response.reasoning.values()))
    if told is not None:
        return Attempt(fault=GIVEN_AWAY, detail=f"says {told!r}", response=text)
    return response.reasoning


def _disagreement(verdict: str | InputError, sample: Sample) -> str | None:
    """Returns how the judge's response differs from the answer, or None if it does not."""
    if isinstance(verdict, InputError):
        return f"the judge refuses: {verdict}"
    try:
        answer = parse_response(verdict, sample.resolve().labels, "direct", needs_confidence=False).answer
    except ResponseError as error:
        return f"the judge's response {verdict[:200]!r} breaks the grammar: {error}"
    return None if answer == sample.answer else f"the judge answers {answer}, not {sample.answer}"


def _unreadable(sample: Sample) -> str | None:
    try:
        decode_image(sample.image)
    except InputError as error:
        return str(error)
    return None


def _ask(responder: Responder, requests: Sequence[Request], drawing: Drawing) -> list[str | InputError]:
    """Returns the one response to each request, or the error by which the responder refuses it.

    A batch that is refused is asked again in halves, and so on, until it is known which requests it was.
    """
    if not requests:
        return []
    try:
        return [texts[0] for texts in responder.respond(requests, drawing)]
    except InputError as error:
        if len(requests) == 1:
            return [error]
    half = len(requests) // 2
    return _ask(responder, requests[:half], drawing) + _ask(responder, requests[half:], drawing)
