from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from tiny_model import build_processor
from tokenizers import Tokenizer

from emocaliber.evaluate.prompting import image_block_of, preprocessing_of, render_prompts, tokenizer_json
from emocaliber.runtime.errors import ExportError
from emocaliber.runtime.prompts import PromptTemplate


@pytest.fixture
def own() -> Any:
    """A processor that a test may change."""
    return build_processor()


def test_rendered_prompt_is_what_the_processor_reads(own: Any) -> None:
    template = PromptTemplate(reason="Why? [{labels}]", direct="Which? [{labels}]")
    prompts, block = render_prompts(own, template), image_block_of(own)
    content = [{"type": "text", "text": template.instruction(("a", "b"), "direct")}, {"type": "image"}]
    expected = own.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    ours = prompts.direct.prefix(("a", "b")) + block.text() + prompts.direct.after_image
    inputs = own(text=[expected], images=[[Image.new("RGB", (20, 30))]], do_image_splitting=False)
    assert own.tokenizer(ours)["input_ids"] == list(inputs["input_ids"][0])
    assert prompts.reason.before_image == "<|im_start|>User: Why? [{labels}]"


def test_template_with_the_image_first_is_refused(own: Any) -> None:
    own.chat_template = "<image>{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
    with pytest.raises(ExportError, match="does not put the instruction before the image"):
        render_prompts(own, PromptTemplate())


def test_template_without_or_with_two_images_is_refused(own: Any) -> None:
    own.chat_template = "{{ messages[0]['content'][0]['text'] }}"
    with pytest.raises(ExportError, match="puts 0 images"):
        render_prompts(own, PromptTemplate())
    own.chat_template += "<image><image>"
    with pytest.raises(ExportError, match="puts 2 images"):
        render_prompts(own, PromptTemplate())


def test_missing_template_is_refused(own: Any) -> None:
    own.chat_template = None
    with pytest.raises(ExportError, match="cannot render a prompt"):
        render_prompts(own, PromptTemplate())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("resample", 2, "resample=2"),
        ("rescale_factor", 1 / 128, "rescale_factor"),
        ("do_normalize", False, "do_normalize"),
        ("max_image_size", {"longest_edge": 48}, "max_image_size=48 while the vision encoder takes 32"),
    ],
)
def test_other_image_processing_is_refused(own: Any, name: str, value: object, message: str) -> None:
    setattr(own.image_processor, name, value)
    with pytest.raises(ExportError, match=message):
        preprocessing_of(own.image_processor, 32)


def test_preprocessing(own: Any) -> None:
    found = preprocessing_of(own.image_processor, 32)
    assert (found.longest_edge, found.tile_size) == (64, 32)
    assert (found.mean, found.std) == ((0.5,) * 3, (0.5,) * 3)


def test_tokenizer_is_written_without_padding(own: Any) -> None:
    own.tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=5)
    plain = Tokenizer.from_str(tokenizer_json(own.tokenizer))
    assert plain.padding is None
    assert plain.truncation is None
    assert plain.encode("<answer>joy</answer>").ids == own.tokenizer("<answer>joy</answer>")["input_ids"]


def test_slow_tokenizers_are_refused() -> None:
    with pytest.raises(ExportError, match="only fast tokenizers"):
        tokenizer_json(object())
