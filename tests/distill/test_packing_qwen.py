"""The packed pass of the Qwen-VL families against whole sequences, one by one, through the plain model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES, tiny_family

from emocaliber.distill.packing import PackedRow, PackingCollator, packed_losses
from emocaliber.runtime.grammar import REASONING_TAGS, render_reasoning, render_response
from emocaliber.runtime.prompts import PromptTemplate

TEMPLATE = PromptTemplate(reason="Feel? [{labels}] Think.", direct="Feel? [{labels}]")
LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return tiny_family(request.param)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[PackedRow]:
    """Returns rows of both modes, with images of 3 x 4, 4 x 1 and 2 x 2 visual tokens."""
    folder, rng, made = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for i, (text, size) in enumerate((("", (90, 130, 3)), ("x", (120, 40, 3)), ("many words", (64, 64, 3)))):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
        made.append(
            PackedRow(
                image=str(path),
                labels=LABELS,
                mode="reason" if text else "direct",
                reasoning=render_reasoning(dict.fromkeys(REASONING_TAGS, text)) if text else "",
                answer=LABELS[i],
                response=render_response(LABELS[i], 0.3 * (i + 1), None),
                target=tuple((k + 1) / 28 for k in range(7)),
            )
        )
    return made


def response_log_probs(family: tuple[Any, Any], row: PackedRow, response: str) -> tuple[list[str], torch.Tensor]:
    """Returns the tokens of a response and their log-probabilities, by one forward pass with the model's positions."""
    model, processor = family
    content = [{"type": "text", "text": TEMPLATE.instruction(LABELS, row.mode)}, {"type": "image"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs, whole = (
        processor(text=[text], images=[[Image.open(row.image)]], return_tensors="pt")
        for text in (prompt, prompt + response)
    )
    start, ids = inputs["input_ids"].shape[1], whole["input_ids"][0]
    with torch.inference_mode():
        logits = model(**whole, use_cache=False).logits[0]
    log_probs = torch.log_softmax(logits[start - 1 : -1], -1)[range(len(ids) - start), ids[start:]]
    return processor.tokenizer.convert_ids_to_tokens(ids[start:]), log_probs


def test_label_scores_equal_one_pass_per_label(family: tuple[Any, Any], rows: list[PackedRow]) -> None:
    batch = PackingCollator(family[1], TEMPLATE)(rows)
    assert len({tuple(grid.tolist()) for grid in batch["image_grid_thw"]}) == 3
    with torch.inference_mode():
        _, _, scores = packed_losses(family[0], batch)
    expected = torch.empty_like(scores)
    for i, row in enumerate(rows):
        for k, label in enumerate(LABELS):
            tokens, log_probs = response_log_probs(family, row, f"{row.reasoning}<answer>{label}</answer>")
            expected[i, k] = log_probs[tokens.index("<answer>") + 1 :].sum()
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)
    assert scores.std(dim=1).min() > 0.1
    assert (scores[0] - scores[1]).abs().max() > 1e-2


def test_losses_are_their_definitions(family: tuple[Any, Any], rows: list[PackedRow]) -> None:
    with torch.inference_mode():
        sequence, distribution, scores = packed_losses(family[0], PackingCollator(family[1], TEMPLATE)(rows))
    learnt = []
    for row in rows:
        tokens, log_probs = response_log_probs(family, row, f"{row.reasoning}{row.response}<|im_end|>")
        opened, closed = tokens.index("<answer>"), tokens.index("</answer>")
        learnt += [log_probs[: opened + 1], log_probs[closed + 1 :]]
    assert float(sequence) == pytest.approx(float(-torch.cat(learnt).mean()), abs=1e-3)
    target = torch.tensor([row.target for row in rows])
    divergence = (target * (target.log() - scores.log_softmax(-1))).sum(-1).mean()
    assert float(distribution) == pytest.approx(float(divergence), abs=1e-4)


def test_a_row_does_not_depend_on_its_neighbours(family: tuple[Any, Any], rows: list[PackedRow]) -> None:
    collator = PackingCollator(family[1], TEMPLATE)
    with torch.inference_mode():
        together = packed_losses(family[0], collator(rows))[2]
        alone = [packed_losses(family[0], collator([row]))[2] for row in rows]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_losses_teach_every_part(name: str, rows: list[PackedRow]) -> None:
    parts = ["model.visual.blocks", "model.visual.merger", "model.language_model", "lm_head"]
    parts += ["model.visual.deepstack_merger_list"] if name == "qwen3_vl" else []
    for which in (0, 1):
        model, processor = tiny_family(name)
        packed_losses(model.train(), PackingCollator(processor, TEMPLATE)(rows))[which].backward()
        for part in parts:
            grads = [p.grad for key, p in model.named_parameters() if key.startswith(part) and p.grad is not None]
            assert grads, part
            assert all(torch.isfinite(grad).all() for grad in grads)
            assert max(float(grad.abs().max()) for grad in grads) > 1e-6, part
