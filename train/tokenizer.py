"""A small byte-level BPE tokenizer trained in process, for models built from scratch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from emocaliber.runtime.grammar import TAG_TOKENS

_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a family of models writes a conversation."""

    pad: str
    start: str
    end: str
    """Ends a turn, and with it a response."""
    image: str
    """Stands for one visual token."""
    others: tuple[str, ...]
    """Further special tokens."""
    template: str
    """Chat template in Jinja; it ends exactly where the response starts, or where it ends."""


SMOLVLM = Dialect(
    pad="<|pad|>",
    start="<|im_start|>",
    end="<end_of_utterance>",
    image="<image>",
    others=("<fake_token_around_image>", "<global-img>"),
    template=(
        "{% for message in messages %}"
        "{% if message['role'] != 'assistant' %}<|im_start|>{% endif %}{{ message['role'] | title }}: "
        + _CONTENT.replace("IMAGE", "<image>")
        + "<end_of_utterance>{% if message['role'] != 'assistant' %}{{ '\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
    ),
)
"""SmolVLM's layout."""

QWEN = Dialect(
    pad="<|endoftext|>",
    start="<|im_start|>",
    end="<|im_end|>",
    image="<|image_pad|>",
    others=("<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
    template=(
        "{% for message in messages %}<|im_start|>{{ message['role'] }}{{ '\n' }}"
        + _CONTENT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
        + "<|im_end|>{% if message['role'] != 'assistant' %}{{ '\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
    ),
)
"""Qwen2.5-VL's layout."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, dialect: Dialect = SMOLVLM) -> PreTrainedTokenizerFast:
    """Returns a tokenizer trained on ``texts``; every tag of the response grammar is one token of its own.

    The tags are added tokens but not *special* ones: decoding a response with ``skip_special_tokens=True`` keeps them.

    Args:
        texts: Prompts and responses the model will see.
        vocab_size: Upper bound, added tokens included.
        dialect: Special tokens and chat template.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [dialect.pad, dialect.start, dialect.end, *dialect.others, dialect.image]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAG_TOKENS),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in TAG_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=dialect.pad,
        bos_token=dialect.start,
        eos_token=dialect.end,
        extra_special_tokens=[*dialect.others, dialect.image],
        chat_template=dialect.template,
        clean_up_tokenization_spaces=False,
    )
