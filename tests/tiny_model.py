"""A tiny random Idefics3 with a tokenizer trained in process: the real architecture at a size that tests can afford."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)

from emocaliber.evaluate.convolutional import (
    ConvolutionalIdefics3Config,
    ConvolutionalIdefics3ForConditionalGeneration,
    register,
)
from emocaliber.runtime.grammar import CONFIDENCE_GRID, TAG_TOKENS
from emocaliber.runtime.prompts import PromptTemplate
from emocaliber.runtime.taxonomy import TAXONOMIES

SPECIAL_TOKENS = (
    "<|pad|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
)
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}<image>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
IMAGE_TOKENS = 4
"""(32 px / 8 px per patch / scale factor 2) squared."""


def build_processor(
    *, tile_size: int = 32, image_tokens: int = IMAGE_TOKENS, as_published: bool = False
) -> Idefics3Processor:
    """Returns a processor: byte-level BPE, every tag one token, PIL image processor without splitting.

    ``as_published`` is one as SmolVLM comes with: no tag is a token, and images are split into tiles.
    """
    corpus = [" ".join(taxonomy.labels) for taxonomy in TAXONOMIES.values()]
    corpus += [PromptTemplate().reason, PromptTemplate().direct, " ".join(f"{c:.2f}" for c in CONFIDENCE_GRID)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    if not as_published:
        tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAG_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|im_start|>", eos_token="<end_of_utterance>"
    )
    images = Idefics3ImageProcessorPil(
        do_image_splitting=as_published,
        size={"longest_edge": 2 * tile_size},
        max_image_size={"longest_edge": tile_size},
    )
    return Idefics3Processor(images, fast, image_seq_len=image_tokens, chat_template=CHAT_TEMPLATE)


CONVOLUTIONS = {"stem_width": 4, "stem_stride": 2, "widths": [8, 32], "depths": [1, 2], "looks": 4}
"""A convolutional tower of as many visual tokens."""


def build_model(
    processor: Idefics3Processor, *, seed: int = 0, convolutional: bool = False
) -> Idefics3ForConditionalGeneration:
    """Returns a random model of about 50 k weights; initialised wide enough that its outputs are not constant.

    Args:
        processor: Its processor.
        seed: Of its weights.
        convolutional: Whether its vision tower is a residual network, with batch statistics of random images.
    """
    tokenizer = processor.tokenizer
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = (ConvolutionalIdefics3Config if convolutional else Idefics3Config)(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "initializer_range": 0.15,
            **(CONVOLUTIONS if convolutional else {}),
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            "initializer_range": 0.15,
            **ids,
        },
    )
    torch.manual_seed(seed)
    if convolutional:
        register()
        model = ConvolutionalIdefics3ForConditionalGeneration(config).train()
        for _ in range(20):
            model.model.vision_model(torch.randn(8, 3, 32, 32) + torch.randn(8, 3, 1, 1))
        model.eval()
    else:
        model = Idefics3ForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model
