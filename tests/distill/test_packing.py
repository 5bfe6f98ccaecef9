"""The packed pass against the definition: whole sequences, one by one, no tree, no padding, no mask of our own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_model import build_model

from emocaliber.distill.packing import IGNORED, PackedRow, PackingCollator, packed_losses
from emocaliber.runtime.grammar import REASONING_TAGS, render_reasoning, render_response
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.samples import Sample
from emocaliber.runtime.taxonomy import Taxonomy, resolve_taxonomy
from emocaliber.train.conversations import prompt_of

TEMPLATE = PromptTemplate(reason="Feel? [{labels}] Think.", direct="Feel? [{labels}]")
EMOTIONS = resolve_taxonomy("emotion6-7")
BEGIN_ALIKE = Taxonomy(name="custom", labels=("joy", "joyful", "joyless", "sad"))
ALL_BEGIN_ALIKE = Taxonomy(name="custom", labels=("joy", "joyful", "joyless"))


def rows_of(scenes: list[Sample], taxonomy: Taxonomy) -> list[PackedRow]:
    """Returns rows of both modes, all of different length."""
    count = len(taxonomy)
    target = tuple((i + 1) / (count * (count + 1) / 2) for i in range(count))
    reasonings = ["", "x", "many words, of any kind"]
    return [
        PackedRow(
            image=scenes[i].image,
            labels=taxonomy.labels,
            mode="reason" if text else "direct",
            reasoning=render_reasoning(dict.fromkeys(REASONING_TAGS, text)) if text else "",
            answer=taxonomy.labels[i],
            response=render_response(taxonomy.labels[i], 0.3 * (i + 1), None),
            target=target,
        )
        for i, text in enumerate(reasonings)
    ]


class Plain:
    """Log-probabilities by one plain forward pass of a whole sequence."""

    def __init__(self, model: Any, processor: Any, row: PackedRow, taxonomy: Taxonomy) -> None:
        sample = Sample(image=row.image, taxonomy="custom", labels=taxonomy.labels)
        text = processor.apply_chat_template(
            prompt_of(sample, TEMPLATE, row.mode), add_generation_prompt=True, tokenize=False
        )
        inputs = processor(text=[text], images=[[Image.open(row.image)]], return_tensors="pt", add_special_tokens=False)
        self.prompt = inputs["input_ids"][0].tolist()
        self._pixels = inputs["pixel_values"]
        self._model = model
        self._encode = processor.tokenizer.encode

    def encode(self, text: str) -> list[int]:
        return list(self._encode(text, add_special_tokens=False))

    def log_probs(self, ids: list[int]) -> torch.Tensor:
        """Returns (len(ids),) log-probability of each token given those before it; of the first, nothing."""
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([ids]), pixel_values=self._pixels).logits[0]
        return torch.cat([torch.zeros(1), torch.log_softmax(logits[:-1], -1)[range(len(ids) - 1), ids[1:]]])

    def score(self, row: PackedRow, label: str) -> float:
        """Returns the log-likelihood of ``label</answer>`` after ``<answer>``."""
        before = self.prompt + self.encode(row.reasoning + "<answer>")
        ids = before + self.encode(label + "</answer>")
        return float(self.log_probs(ids)[len(before) :].sum())


@pytest.mark.parametrize(
    ("taxonomy", "shared"), [(EMOTIONS, False), (BEGIN_ALIKE, False), (ALL_BEGIN_ALIKE, True)], ids=["7", "4", "3"]
)
def test_label_scores_equal_one_pass_per_label(
    model: Any, processor: Any, scenes: list[Sample], taxonomy: Taxonomy, shared: bool
) -> None:
    rows = rows_of(scenes, taxonomy)
    collator = PackingCollator(processor, TEMPLATE)
    with torch.inference_mode():
        _, _, scores = packed_losses(model, collator(rows))
    assert scores.shape == (3, len(taxonomy))
    expected = [
        [plain.score(row, label) for label in taxonomy.labels]
        for row in rows
        for plain in [Plain(model, processor, row, taxonomy)]
    ]
    offsets = torch.tensor(expected) - scores
    # Tokens that all labels begin with add the same to each, and are left out.
    torch.testing.assert_close(offsets, offsets[:, :1].expand_as(offsets) if shared else 0 * offsets, atol=1e-4, rtol=0)
    assert (offsets.abs().min() > 0.1) == shared
    assert scores.std(dim=1).min() > 0.1
    assert (scores[0] - scores[1]).abs().max() > 1e-2


def test_the_sequence_loss_is_the_cross_entropy_of_the_learnt_tokens(
    model: Any, processor: Any, scenes: list[Sample]
) -> None:
    rows = rows_of(scenes, EMOTIONS)
    collator = PackingCollator(processor, TEMPLATE)
    with torch.inference_mode():
        loss, _, _ = packed_losses(model, collator(rows))
    learnt = []
    for row in rows:
        plain = Plain(model, processor, row, EMOTIONS)
        before = plain.prompt + plain.encode(row.reasoning + "<answer>")
        label = plain.encode(row.answer + "</answer>")
        after = plain.encode(row.response.split("</answer>")[1] + "<end_of_utterance>")
        log_probs = plain.log_probs(before + label + after)
        # The reasoning and the answer's opening tag, then the confidence and the end; the label's own tokens are not.
        learnt += [log_probs[len(plain.prompt) : len(before)], log_probs[len(before + label) :]]
    assert float(loss) == pytest.approx(float(-torch.cat(learnt).mean()), abs=1e-4)


def test_what_is_learnt_and_what_is_not(processor: Any, scenes: list[Sample]) -> None:
    collator = PackingCollator(processor, TEMPLATE)
    batch = collator(rows_of(scenes, EMOTIONS))
    texts = [
        processor.tokenizer.decode([int(token) for token in labels if token != IGNORED]) for labels in batch["labels"]
    ]
    assert texts[0] == "<answer><confidence>0.30</confidence><end_of_utterance>"
    assert texts[1].startswith("<think><element>x</element><human>x</human>")
    assert texts[1].endswith("</think><answer><confidence>0.60</confidence><end_of_utterance>")
    trees = batch["node_parents"].min()
    assert (batch["labels"][:, trees:] == IGNORED).all()


def test_a_row_does_not_depend_on_its_neighbours(model: Any, processor: Any, scenes: list[Sample]) -> None:
    rows = rows_of(scenes, EMOTIONS)
    collator = PackingCollator(processor, TEMPLATE)
    with torch.inference_mode():
        together = packed_losses(model, collator(rows))[2]
        alone = [packed_losses(model, collator([row]))[2] for row in rows]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_label_sets_mix_in_a_batch(model: Any, processor: Any, scenes: list[Sample]) -> None:
    reversed_emotions = Taxonomy(name="custom", labels=EMOTIONS.labels[::-1])
    sets = (EMOTIONS, ALL_BEGIN_ALIKE, reversed_emotions, BEGIN_ALIKE)
    rows = [rows_of(scenes, taxonomy)[i % 3] for i, taxonomy in enumerate(sets)]
    collator = PackingCollator(processor, TEMPLATE)
    with torch.inference_mode():
        sequence, distribution, scores = packed_losses(model, collator(rows))
        alone = [packed_losses(model, collator([row])) for row in rows]
    assert scores.shape == (4, 7)
    for i, row in enumerate(rows):
        torch.testing.assert_close(scores[i, : len(row.labels)], alone[i][2][0], atol=1e-5, rtol=0)
        assert (scores[i, len(row.labels) :] == -torch.inf).all()
    assert float(distribution) == pytest.approx(sum(float(losses[1]) for losses in alone) / 4, abs=1e-5)
    assert torch.isfinite(sequence)


def test_scores_do_not_see_the_answer_of_the_response(model: Any, processor: Any, scenes: list[Sample]) -> None:
    first = rows_of(scenes, EMOTIONS)[1]
    other = dataclasses.replace(first, answer="neutral", response=render_response("neutral", 0.9, None))
    collator = PackingCollator(processor, TEMPLATE)
    with torch.inference_mode():
        scores = packed_losses(model, collator([first, other]))[2]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=0)


def test_mixed_precision_does_not_round_the_scores(model: Any, processor: Any, scenes: list[Sample]) -> None:
    batch = PackingCollator(processor, TEMPLATE)(rows_of(scenes, EMOTIONS))
    with torch.inference_mode():
        exact = packed_losses(model, batch)[2]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = packed_losses(model, batch)
    assert [part.dtype for part in mixed] == [torch.float32] * 3
    assert 0 < (mixed[2] - exact).abs().max() < 0.5


def test_the_distribution_loss_is_a_divergence(model: Any, processor: Any, scenes: list[Sample]) -> None:
    rows = rows_of(scenes, EMOTIONS)
    collator = PackingCollator(processor, TEMPLATE)
    with torch.inference_mode():
        _, loss, scores = packed_losses(model, collator(rows))
        own = scores.softmax(-1)
        same = [dataclasses.replace(row, target=tuple(p.tolist())) for row, p in zip(rows, own, strict=True)]
        zero = packed_losses(model, collator(same))[1]
        sure = [dataclasses.replace(row, target=(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)) for row in rows]
        nll = packed_losses(model, collator(sure))[1]
    target = torch.tensor([row.target for row in rows])
    assert float(loss) == pytest.approx(float((target * (target.log() - own.log())).sum(-1).mean()), abs=1e-5)
    assert float(zero) == pytest.approx(0.0, abs=1e-5)
    # Against a one-hot target it is the negative log-likelihood of that label.
    assert float(nll) == pytest.approx(float(-own[:, 3].log().mean()), abs=1e-5)


def test_both_losses_teach_every_part(processor: Any, scenes: list[Sample]) -> None:
    collator = PackingCollator(processor, TEMPLATE)
    batch = collator(rows_of(scenes, EMOTIONS))
    for which in (0, 1):
        model = build_model(processor).train()
        packed_losses(model, batch)[which].backward()
        for part in ("model.vision_model", "model.connector", "model.text_model"):
            grads = [p.grad for name, p in model.named_parameters() if name.startswith(part) and p.grad is not None]
            assert grads, part
            assert all(torch.isfinite(grad).all() for grad in grads)
            assert max(float(grad.abs().max()) for grad in grads) > 1e-6, part
