"""The tokenizer trained in process: tags are single tokens that survive decoding, and text comes back as it was."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from emocaliber.runtime.grammar import REASONING_TAGS, TAG_TOKENS, parse_response, render_response
from emocaliber.train.tokenizer import train_tokenizer

SPECIAL = ("<|pad|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>", "<image>")
TEXTS = ["a quiet beach at dusk", "nobody is there", "joy, fear, sadness", "0.05 0.95"] * 5


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 400)


@pytest.mark.parametrize("tag", TAG_TOKENS)
def test_every_tag_is_one_token_that_decoding_keeps(tokenizer: PreTrainedTokenizerFast, tag: str) -> None:
    ids = tokenizer.encode(f"x{tag}y", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["x", tag, "y"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"x{tag}y"


@pytest.mark.parametrize("token", SPECIAL)
def test_special_tokens_are_one_token_that_decoding_drops(tokenizer: PreTrainedTokenizerFast, token: str) -> None:
    ids = tokenizer.encode(f"x{token}y", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["x", token, "y"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "xy"
    assert ids[1] in tokenizer.all_special_ids


def test_ends_and_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.eos_token == "<end_of_utterance>"
    assert tokenizer.pad_token == "<|pad|>"
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id}) == 3


@pytest.mark.parametrize("text", ["joy", "  two  spaces , and . stops", "Grüße, 日本語 🙂", "line\nline\ttab", "0.85"])
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_response_survives_the_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    reasoning = {tag: f"a quiet beach, {tag}." for tag in REASONING_TAGS}
    text = render_response("joy", 0.85, reasoning)
    ids = tokenizer.encode(text + "<end_of_utterance>", add_special_tokens=False)
    parsed = parse_response(tokenizer.decode(ids, skip_special_tokens=True), ("joy", "fear"), "reason")
    assert (parsed.answer, parsed.confidence, parsed.reasoning) == ("joy", 0.85, reasoning)


def test_the_vocabulary_keeps_its_bound() -> None:
    # 256 bytes, 6 special tokens, 16 tags: 278 are the least; 30 more are left to be learnt.
    assert len(train_tokenizer(["one sentence with many different words in it"] * 50, 290)) <= 290
