"""Stage *on-policy*: the student writes responses, and the teacher corrects them token by token.

Traces show the student only what the teacher writes; here it learns where its own responses lead it, with TRL. Where
both models read and write the same tokens, `DistillationTrainer` compares their distributions of every next token
(Agarwal et al. 2023, arXiv 2306.13649). Where they do not, `GOLDTrainer` reads the student's text with the teacher's
own processor, aligns both by its bytes, and compares tokens of the same spelling as above and the rest by their sorted
probabilities (Patiño et al. 2025): sorted probabilities alone would not tell one label from another.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image
from transformers.trainer_callback import PrinterCallback
from trl import DistillationConfig, DistillationTrainer
from trl.import_utils import TRLExperimentalWarning

from emocaliber.evaluate.transformers_responder import visual_token_ids
from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.grammar import MODES
from emocaliber.runtime.images import decode_image
from emocaliber.runtime.samples import Sample
from emocaliber.train.arguments import common_arguments, cut_batch
from emocaliber.train.conversations import choose_modes, passes, prompt_of, with_images
from emocaliber.train.models import freeze_vision
from emocaliber.train.recipe import Recipe
from emocaliber.train.run import Stage, callbacks, last_checkpoint, save_stage
from emocaliber.train.student_recipes import OnPolicyRecipe

Pair = tuple[Any, Any]
"""A model and its processor."""


def train_on_policy(
    student: Pair,
    teacher: Pair,
    samples: Sequence[Sample],
    recipe: Recipe,
    folder: Path,
    *,
    max_new_tokens: int,
    resume: bool = False,
) -> Stage:
    """Returns the finished stage: the student, corrected on its own responses, saved to ``folder``.

    The vision tower stays as it is.

    Args:
        student: Trained in place, and its processor.
        teacher: In eval mode, and its processor.
        samples: Images to ask about; nothing else of them is used.
        recipe: The run; its ``on_policy`` table holds the hyper-parameters.
        folder: Where the student goes.
        max_new_tokens: Longest response.
        resume: Continue from the newest checkpoint in ``folder``.

    Raises:
        InputError: If an image does not exist.
        ConfigError: If the loss asked for needs one vocabulary and there are two, or an unfinished run is in the way.
    """
    table: OnPolicyRecipe = recipe.stage("on_policy")
    started = time.perf_counter()
    asked = passes(samples, table.steps * table.batch_size, recipe.seed + 4)
    difference = _difference(student, teacher, asked[0], recipe)
    if table.loss == "jsd" and difference:
        raise ConfigError(
            f"on_policy.loss is 'jsd', which compares next tokens, but teacher and student differ in {difference}; "
            f"say --set on_policy.loss=uld"
        )
    checkpoint = last_checkpoint(folder, resume=resume)
    freeze_vision(student[0])
    make = _uld_trainer if table.loss == "uld" or difference else _jsd_trainer
    trainer = make(student, teacher, _rows(asked, recipe), recipe, folder, max_new_tokens)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return save_stage(
        "on_policy", folder, trainer.model, student[1], recipe, started=started, history=trainer.state.log_history
    )


def _difference(student: Pair, teacher: Pair, sample: Sample, recipe: Recipe) -> str:
    """Returns in what both models' reading and writing differs, or nothing where one batch serves both."""
    (ours, our_processor), (theirs, their_processor) = student, teacher
    sizes = [model.config.get_text_config().vocab_size for model in (ours, theirs)]
    tokenizers = [processor.tokenizer for processor in (our_processor, their_processor)]
    if sizes[0] != sizes[1] or tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        return f"their vocabularies (of {sizes[0]} tokens the student's, of {sizes[1]} the teacher's)"
    image = Image.fromarray(decode_image(sample.image))
    for mode in MODES:
        turns = prompt_of(sample, recipe.student_prompt, mode)
        batches = [
            dict(
                processor(
                    text=processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False),
                    images=[image],
                    return_tensors="np",
                )
            )
            for processor in (our_processor, their_processor)
        ]
        if batches[0].keys() != batches[1].keys() or not all(
            np.array_equal(array, batches[1][name]) for name, array in batches[0].items()
        ):
            return "how their processors read a prompt and its image"
    return ""


def _rows(samples: Sequence[Sample], recipe: Recipe) -> Dataset:
    """Returns rows ``prompt, completion, images``; the completion, which TRL asks for, is empty and never learnt."""
    table: OnPolicyRecipe = recipe.stage("on_policy")
    modes = choose_modes(len(samples), table.direct_share, recipe.seed)
    empty = [{"role": "assistant", "content": [{"type": "text", "text": ""}]}]
    return with_images(
        {"prompt": prompt_of(sample, recipe.student_prompt, mode), "completion": empty, "images": [sample.image]}
        for sample, mode in zip(samples, modes, strict=True)
    )


def _shared_arguments(table: OnPolicyRecipe, recipe: Recipe, folder: Path, max_new_tokens: int) -> dict[str, Any]:
    """Returns what both trainers are told alike."""
    size, accumulation = cut_batch(table.batch_size, table.micro_batch)
    return {
        **common_arguments(table, recipe, folder),
        "max_steps": table.steps,
        "warmup_steps": table.warmup,
        "weight_decay": table.weight_decay,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
        "bf16": table.precision == "bf16",
        "activation_checkpointing": False,
        "beta": table.beta,
        "temperature": table.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "max_completion_length": max_new_tokens,
    }


def _jsd_trainer(
    student: Pair, teacher: Pair, rows: Dataset, recipe: Recipe, folder: Path, max_new_tokens: int
) -> DistillationTrainer:
    table: OnPolicyRecipe = recipe.stage("on_policy")
    return DistillationTrainer(
        model=student[0],
        teacher_model=teacher[0],
        args=DistillationConfig(
            **_shared_arguments(table, recipe, folder, max_new_tokens),
            # The rows are in an order of our own.
            shuffle_dataset=False,
            generation_kwargs={"suppress_tokens": visual_token_ids(student[0].config)},
        ),
        train_dataset=rows.remove_columns("completion"),
        processing_class=student[1],
        callbacks=callbacks("on_policy", folder, recipe),
    )


def _uld_trainer(student: Pair, teacher: Pair, rows: Dataset, recipe: Recipe, folder: Path, max_new_tokens: int) -> Any:
    table: OnPolicyRecipe = recipe.stage("on_policy")
    GOLDConfig, gold_trainer = _gold()  # noqa: N806 - a class
    arguments = GOLDConfig(
        **_shared_arguments(table, recipe, folder, max_new_tokens),
        lmbda=1.0,
        max_length=None,
        use_uld_loss=True,
        uld_use_hybrid_loss=True,
        # The other way to align compares what follows a token with what follows its counterpart.
        uld_token_merge_strategy="bayesian",  # noqa: S106 - no password
        teacher_tokenizer_name_or_path=teacher[0].name_or_path,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
    )
    ended_alike: Any = type("GoldTrainer", (_EndedAlike, gold_trainer.GOLDTrainer), {})
    with _processor_of(gold_trainer, teacher[1]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Cross-architecture VLM distillation detected", UserWarning)
        trainer = ended_alike(
            model=student[0],
            teacher_model=teacher[0],
            args=arguments,
            train_dataset=rows,
            processing_class=student[1],
            callbacks=callbacks("on_policy", folder, recipe),
        )
    # An image token in a response could not be read again.
    suppressed = visual_token_ids(student[0].config)
    trainer.generation_config.suppress_tokens = trainer.generation_kwargs["suppress_tokens"] = suppressed
    trainer.generation_config.disable_compile = True
    return trainer


def _gold() -> tuple[Any, Any]:
    """Returns the configuration and the module of TRL's trainer across tokenizers, which calls itself experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TRLExperimentalWarning)
        from trl.experimental.gold import GOLDConfig, gold_trainer
    return GOLDConfig, gold_trainer


class _EndedAlike:
    """What is added to `GOLDTrainer`: the student's end token is aligned with the teacher's.

    As it is, the teacher reads the name of the student's end token as if it were text, and nothing keeps the student
    from forgetting how a response ends.
    """

    _tokenizer: Any

    def _maybe_add_completion_byte_offsets(self, updated_slice: dict[str, Any]) -> None:
        super()._maybe_add_completion_byte_offsets(updated_slice)  # type: ignore[misc]
        tokenizer, offsets = self._tokenizer, updated_slice["byte_offsets"]
        texts = updated_slice["original_completion_text"]
        updated_slice["original_completion_text"] = [text.removesuffix(tokenizer.eos_token) for text in texts]
        # Like the teacher's it has no bytes, and stands behind the last.
        ended = (updated_slice["input_ids"] == tokenizer.eos_token_id) & (updated_slice["labels"] != -100)
        offsets[..., 1] = offsets[..., 1].where(~ended, offsets[..., 0])


@dataclass(frozen=True, slots=True)
class _Opened:
    """A processor in the place of transformers' `AutoProcessor`."""

    processor: Any

    def from_pretrained(self, *_: Any, **__: Any) -> Any:
        return self.processor


@contextmanager
def _processor_of(module: Any, processor: Any) -> Iterator[None]:
    """Lets the module's trainer take a processor that is open already.

    It would open the teacher's itself, and that of the Qwen-VL families cannot be opened so without torchvision.
    """
    theirs, module.AutoProcessor = module.AutoProcessor, _Opened(processor)
    try:
        yield
    finally:
        module.AutoProcessor = theirs
