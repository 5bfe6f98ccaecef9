"""What a full run of a recipe costs: GPU-hours, memory and disk, by formula and stated assumptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from costs import Batch, adapter_weights, forward_flops, training_flops, weights

from emocaliber.train.recipe import Recipe
from emocaliber.train.stage_recipes import ReinforceRecipe, SupervisedRecipe

TYPICAL = Batch(prompt_tokens=60 + 576, response_tokens=300, patches=4 * 576)
"""An image at the most pixels (576 tokens), a prompt of 60 tokens and a response of 300."""

PUBLISHED = {"reason": 86_067, "verbalize": 43_033}
"""Samples of VEC-CoT's stages."""

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What no formula gives."""

    utilisation: float
    """Share of the peak that training reaches."""
    peak_tflops: float
    rollout_tokens_s: float
    """Tokens of responses a GPU draws in a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of one stage."""

    stage: str
    gpu_hours: float
    memory_gib: float
    """Of one GPU at the peak, without what the allocator wastes."""
    disk_gib: float
    """What the finished stage leaves."""
    disk_meanwhile_gib: float
    """Most that it holds while it runs: a new checkpoint is written before the last one goes."""


def estimate(recipe: Recipe, config: Any, given: Assumptions) -> list[Cost]:
    """Returns the cost of the three stages of a recipe for a model of this configuration."""
    adapters = None if recipe.lora is None else adapter_weights(config, recipe.lora.rank)
    learn = training_flops(config, TYPICAL, adapter_weights=adapters)
    speed = given.peak_tflops * 1e12 * given.utilisation * 3600
    kept, checkpoint = _disk(config, adapters)
    costs = []
    for name, samples in PUBLISHED.items():
        table: SupervisedRecipe = recipe.stage(name)
        costs.append((name, samples * table.epochs * learn / speed, _memory(recipe, config, table, adapters)))
    table_3: ReinforceRecipe = recipe.stage("calibrate")
    responses = table_3.steps * table_3.prompts_per_step * table_3.rollouts
    draw = responses * TYPICAL.response_tokens / given.rollout_tokens_s / 3600
    reference = forward_flops(config, TYPICAL).total
    hours = responses * (learn + reference) / speed + draw
    costs.append(("calibrate", hours, _memory(recipe, config, table_3, adapters)))
    return [
        Cost(
            stage=name,
            gpu_hours=hours,
            memory_gib=memory / GIB,
            disk_gib=kept / GIB,
            disk_meanwhile_gib=2 * checkpoint / GIB,
        )
        for name, hours, memory in costs
    ]


def table(recipe: Recipe, costs: list[Cost], given: Assumptions) -> str:
    """Returns the costs as Markdown, the assumptions above them."""
    rows = [
        f"| {cost.stage} | {cost.gpu_hours:,.0f} | {cost.memory_gib:.0f} | {cost.disk_gib:.0f} "
        f"| {cost.disk_meanwhile_gib:.0f} |"
        for cost in costs
    ]
    return (
        f"{recipe.name} on {recipe.launch.processes} GPU(s): {given.utilisation:.0%} of {given.peak_tflops:g} TFLOP/s "
        f"in training, {given.rollout_tokens_s:,.0f} tokens/s of responses a GPU, {TYPICAL.prompt_tokens} + "
        f"{TYPICAL.response_tokens} tokens a sample, {PUBLISHED['reason']:,} and {PUBLISHED['verbalize']:,} samples\n\n"
        "| stage | GPU-hours | memory a GPU, GiB | disk it leaves, GiB | disk meanwhile, GiB |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n| all | {sum(cost.gpu_hours for cost in costs):,.0f} | | {sum(cost.disk_gib for cost in costs):.0f} | |\n"
    )


def _disk(config: Any, adapters: int | None) -> tuple[int, int]:
    """Returns the bytes of a finished stage and of a checkpoint: weights and both moments of Adam, in float32.

    Merged adapters are saved in the base's 2 bytes a weight.
    """
    if adapters is None:
        return 4 * weights(config), 12 * weights(config)
    return 2 * weights(config), 12 * adapters


def _memory(recipe: Recipe, config: Any, table: SupervisedRecipe | ReinforceRecipe, adapters: int | None) -> float:
    """Returns the bytes a GPU holds: weights, gradients and moments, the reference, one gathered layer, activations.

    With checkpointing, every layer's input is kept, and within one layer 34 bytes a position and width (Korthikanti et
    al. 2022, arXiv 2205.05198, without the attention scores, which no kernel keeps); without it, all layers' are.
    """
    text, vision = config.text_config, config.vision_config
    share = recipe.launch.processes if recipe.launch.shard else 1
    whole = weights(config)
    tables = text.hidden_size * text.vocab_size
    held = 16 * whole / share if adapters is None else 2 * whole / share + 16 * adapters / share
    if isinstance(table, ReinforceRecipe) and adapters is None:
        held += 4 * whole / share
    gathered = 0.0 if share == 1 else 2.0 * 2 * tables
    micro = table.micro_batch or 1
    length = TYPICAL.prompt_tokens + TYPICAL.response_tokens
    layer = micro * max(length * text.hidden_size, TYPICAL.patches * vision.hidden_size)
    inputs = (
        2
        * micro
        * (length * text.hidden_size * text.num_hidden_layers + TYPICAL.patches * vision.hidden_size * vision.depth)
    )
    kept = inputs + 34 * layer if table.gradient_checkpointing else 17 * inputs
    return held + gathered + kept
