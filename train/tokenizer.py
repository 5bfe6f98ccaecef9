"""A small byte-level BPE tokenizer trained in process, for models built from scratch."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from emocaliber.runtime.grammar import TAG_TOKENS

PAD, START, END = "<|pad|>", "<|im_start|>", "<end_of_utterance>"
IMAGE, IMAGE_EDGE, IMAGE_GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|im_start|>User: {% else %}Assistant: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>"
    "{% if message['role'] == 'user' %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""The SmolVLM conversation layout, ending exactly where the response starts or where it ends."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer trained on ``texts``; every tag of the response grammar is one token of its own.

    The tags are added tokens but not *special* ones: decoding a response with ``skip_special_tokens=True`` keeps them.

    Args:
        texts: Prompts and responses the model will see.
        vocab_size: Upper bound, added tokens included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, START, END, IMAGE_EDGE, IMAGE_GLOBAL, IMAGE]
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
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        extra_special_tokens=[IMAGE_EDGE, IMAGE_GLOBAL, IMAGE],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
