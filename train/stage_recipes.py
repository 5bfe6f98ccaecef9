"""Recipes of stages: one frozen record a table of a recipe file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from emocaliber.runtime.errors import ConfigError
from emocaliber.runtime.grammar import Mode
from emocaliber.runtime.prompts import PromptTemplate

from .model_recipe import ModelRecipe, Precision, TrainedStage, positive, whole_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentRecipe:
    """How a training image is altered anew each time it is shown, besides being mirrored; by default not at all."""

    crop: float = 1.0
    """Least share of the image's area that a random crop keeps."""
    rotate: float = 0.0
    """Most degrees it is turned, either way."""
    jitter: float = 0.0
    """Most relative change of brightness, contrast and saturation."""
    mixup: float = 0.0
    """Alpha of the Beta distribution by which images of one label set are mixed, and their labels with them."""

    def __post_init__(self) -> None:
        if not 0.0 < self.crop <= 1.0:
            raise ConfigError(f"crop is {self.crop!r}, expected a number in (0, 1]")
        for name, limit in (("rotate", 180.0), ("jitter", 1.0), ("mixup", float("inf"))):
            value = getattr(self, name)
            if not 0.0 <= value <= limit:
                raise ConfigError(f"{name} is {value!r}, expected a number in [0, {limit:g}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecipe:
    """Label sets that are altered alike and have teachers in common: small residual networks, trained from scratch."""

    sets: tuple[str, ...]
    """Names in ``data.sets``, or taxonomies."""
    augment: AugmentRecipe | None = None
    """What happens to their images, also while the tower learns; None takes what the stage has."""
    last_augment: AugmentRecipe | None = None
    """What happens to them in the tower's last steps; None goes on as before."""
    teachers: int = 0
    """How many networks, which differ in their seed."""
    side: int = 96
    """Pixels of a side that they see, of the image that the tower sees."""
    stride: int = 2
    """Of the first convolution."""
    widths: tuple[int, ...] = (32, 64, 128, 192)
    """Channels of the residual blocks."""
    dropout: float = 0.2
    """Before the head."""
    learning_rate: float = 2e-3
    epochs: float = 30.0

    def __post_init__(self) -> None:
        positive(self, "side", "stride", "learning_rate", "epochs")
        if not self.sets:
            raise ConfigError("sets is empty, expected names of data.sets or taxonomies")
        if self.teachers < 0:
            raise ConfigError(f"teachers is {self.teachers!r}, expected a number >= 0")
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ConfigError(f"widths are {list(self.widths)}, expected two or more numbers > 0")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout!r}, expected a number in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionRecipe:
    """First training of the vision tower of a model built from scratch; pretrained models need none."""

    learning_rate: float
    batch_size: int
    epochs: float
    warmup: float = 0.05
    weight_decay: float = 0.05
    decay_positions: bool = True
    """Whether the position embeddings decay too; norms and biases never do."""
    beta2: float = 0.999
    """Of AdamW."""
    average: float = 0.0
    """Share of the weights' exponential average that a step keeps at most; 0 keeps the weights of the last step."""
    balance: float = 1.0
    """A label set of n images is shown as if it had n_max (n / n_max) ** balance: 1 as they are, 0 all alike."""
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    last_share: float = 0.2
    """Share of the steps that are the last, for groups with a ``last_augment``."""
    groups: dict[str, GroupRecipe] = field(default_factory=dict)
    """Label sets that are treated apart, by a name of the recipe's choice."""
    precision: Precision = "fp32"
    """Type of the arithmetic; weights stay float32."""
    votes_weight: float = 1.0
    """Weight of the cross-entropy to the votes."""
    distill_weight: float = 1.0
    """Weight of KL(mean of the teachers ‖ tower), of images that have teachers."""
    feature_weight: float = 1.0
    """Weight of the distance between the tower's tokens and the teachers' maps, of such images."""
    save_steps: int = 500

    def __post_init__(self) -> None:
        positive(self, "learning_rate", "batch_size", "epochs", "save_steps")
        for name in ("beta2", "average"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected a number in [0, 1)")
        for name in ("votes_weight", "distill_weight", "feature_weight"):
            if not getattr(self, name) >= 0.0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected a number >= 0")
        for name in ("balance", "last_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected a number in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedRecipe:
    """Supervised fine-tuning (stages *reason* and *verbalize*)."""

    samples: str | None = None
    """Samples file of this stage; None takes the one of ``[data]``."""
    learning_rate: float
    batch_size: int
    """Samples per optimiser step, over all processes."""
    micro_batch: int | None = None
    """Samples a process takes at once; None takes its whole share of the batch."""
    epochs: float = 1.0
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    precision: Precision = "fp32"
    """Type of the arithmetic; weights stay float32 unless only adapters are trained."""
    direct_share: float = 0.0
    """Share of samples shown in direct mode, without reasoning (0 in the paper)."""
    draw_answers: bool = False
    """In direct mode, teach an answer drawn from the votes, where there are some, not the one with most of them: the
    model's label probabilities become the annotators'. A reasoning speaks for one answer, which it keeps."""
    max_samples: int | None = None
    gradient_checkpointing: bool = False
    """Keep only the inputs of the layers and compute the rest again: less memory, about a third more time."""
    fused_kernels: bool = False
    """Liger kernels, which need the package liger-kernel and a GPU."""
    freeze_vision: bool = False
    """Train the language model alone; the vision tower and what joins it to the decoder stay as they are. Of adapters
    `LoraRecipe.targets` says where they go."""
    save_steps: int = 200

    def __post_init__(self) -> None:
        positive(self, "learning_rate", "batch_size", "epochs", "save_steps")
        whole_batches("batch_size", self.batch_size, self.micro_batch)
        if not 0.0 <= self.direct_share <= 1.0:
            raise ConfigError(f"direct_share is {self.direct_share!r}, expected a number in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotateRecipe:
    """Confidence labels: from the stage-1 model's own success rate, or from the annotators' votes."""

    source: Literal["responses", "votes"] = "responses"
    """``votes`` takes the share of the votes that the answer got."""
    samples: int = 8
    """Responses sampled per image."""
    images: int = 1000
    """How many training images are annotated."""
    prior: float = 0.5
    """Pseudo-counts a = b of the Beta prior that smooths the success rate."""
    temperature: float = 1.0
    precision: Precision = "fp32"
    """Type of the weights while responses are drawn."""
    batch_size: int = 32
    endpoint: str | None = None
    """URL of an OpenAI-compatible server of the stage-1 model (vLLM is one) that answers instead of transformers."""
    model: str | None = None
    """The model's name there."""

    def __post_init__(self) -> None:
        positive(self, "samples", "images", "prior", "temperature", "batch_size")
        _check_endpoint(self.endpoint, self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRecipe:
    """What to do when the stated confidences collapse to one value."""

    entropy: float = 0.05
    """Nats: the confidences of a step have collapsed when the entropy of their values is below this."""
    patience: int = 10
    """Collapsed steps in a row before the alarm goes off."""
    action: Literal["stop", "warn"] = "stop"

    def __post_init__(self) -> None:
        positive(self, "patience")
        if not self.entropy >= 0.0:
            raise ConfigError(f"entropy is {self.entropy!r}, expected a number >= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforceRecipe:
    """Stage *calibrate*: GRPO, or a proper score on the confidence tokens.

    The latter has one response an image, drawn once; `prompts_per_draw`, `rollouts`, `reward` and `rollout_engine` are
    GRPO's alone.
    """

    samples: str | None = None
    """Samples file of this stage; None takes the one of ``[data]``."""
    method: Literal["grpo", "tokenized-brier"] = "grpo"
    """``tokenized-brier`` trains the tokens of the confidence alone, supervised (Li et al. 2025, arXiv 2508.18847)."""
    learning_rate: float
    steps: int
    prompts_per_step: int
    """Different images in one optimiser step, over all processes."""
    prompts_per_draw: int | None = None
    """Images whose responses are drawn at once, a multiple of `prompts_per_step`; None draws for each step."""
    rollouts: int = 8
    """Sampled responses per image (n of the paper)."""
    micro_batch: int | None = None
    """Responses a process takes at once; None takes its whole share of the step."""
    reward: Literal["bounded", "paper"] = "bounded"
    schedule: Literal["linear", "constant"] = "linear"
    """Of the learning rate: falling to 0, or staying."""
    kl: float = 0.01
    """Weight β of the KL penalty to the stage-2 model: for GRPO the low-variance estimator of its reverse, for the
    tokenised Brier score the cross-entropy of the responses drawn from that model."""
    temperature: float = 1.0
    max_new_tokens: int = 2048
    direct_share: float = 0.0
    precision: Precision = "fp32"
    freeze_vision: bool = False
    """As `SupervisedRecipe.freeze_vision`."""
    gradient_checkpointing: bool = False
    fused_kernels: bool = False
    rollout_engine: Literal["auto", "transformers", "vllm"] = "auto"
    """``auto`` is vLLM where it is installed and there is a GPU, else transformers."""
    alarm: AlarmRecipe = field(default_factory=AlarmRecipe)
    save_steps: int = 100
    """Steps between checkpoints; where several steps share a draw, the next multiple of these."""

    def __post_init__(self) -> None:
        positive(self, "learning_rate", "steps", "prompts_per_step", "temperature", "max_new_tokens", "save_steps")
        if self.rollouts < 2:
            raise ConfigError(f"rollouts is {self.rollouts}, but a group needs at least 2 to compare")
        whole_batches("prompts_per_draw", self.prompts_per_draw or self.prompts_per_step, self.prompts_per_step)
        at_once = 1 if self.method == "tokenized-brier" else self.rollouts
        whole_batches("responses of a step", self.prompts_per_step * at_once, self.micro_batch)

    @property
    def steps_per_draw(self) -> int:
        """Steps that learn from responses drawn at once."""
        return (self.prompts_per_draw or self.prompts_per_step) // self.prompts_per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class RespondRecipe:
    """Responses of a stage's model to held-out samples, for ``emocaliber evaluate --predictions``."""

    stage: TrainedStage = "calibrate"
    """Whose model answers."""
    samples: str | None = None
    """Samples file; None takes the one of ``[data]``."""
    split: str = "test"
    mode: Mode = "reason"
    temperature: float = 0.7
    """The published inference script's; 0 takes the most probable token each time."""
    max_new_tokens: int = 1024
    """The published inference script's."""
    precision: Precision = "fp32"
    batch_size: int = 32
    endpoint: str | None = None
    """URL of an OpenAI-compatible server of the model (vLLM is one) that answers instead of transformers."""
    model: str | None = None
    """The model's name there."""

    def __post_init__(self) -> None:
        positive(self, "max_new_tokens", "batch_size")
        _check_endpoint(self.endpoint, self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectRecipe:
    """Teacher traces for the student."""

    images: int = 1000
    samples: int = 1
    """Reasonings sampled per image; nothing is sampled in direct mode."""
    label_orders: int = 1
    """Orders in which the candidates of a label set are listed, at most as many as it has labels, the first its own:
    direct mode is asked once in each, the reasonings of an image take turns."""
    subset_share: float = 0.0
    """Share of the images that are asked for a random part of their candidates, which holds their answer."""
    temperature: float = 1.0
    precision: Precision = "fp32"
    """Type of the teacher's weights."""
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """``auto`` is vLLM where it is installed, there is a GPU, and the teacher was not built from scratch."""
    batch_size: int = 32
    """Questions a teacher takes at once."""
    shard_images: int = 256
    """Images whose traces make a file: what a kill loses, and what a worker takes at once."""
    workers: int = 1
    """Teachers that collect side by side; more than one are processes of a Ray cluster, or of this machine."""

    def __post_init__(self) -> None:
        positive(self, "images", "samples", "label_orders", "temperature", "batch_size", "shard_images", "workers")
        if not 0.0 <= self.subset_share <= 1.0:
            raise ConfigError(f"subset_share is {self.subset_share!r}, expected a number in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRecipe:
    """Distillation: sequence loss plus label-distribution loss."""

    model: ModelRecipe
    """Weights at a path bring their own processor and tokenizer, which learns the tags; a model built from scratch
    takes the teacher's."""
    prompt: PromptTemplate | None = None
    """The student's instruction; None takes the recipe's, with the image behind it."""
    learning_rate: float
    batch_size: int
    """Rows per optimiser step, over all processes."""
    micro_batch: int | None = None
    """Rows a process takes at once; None takes its whole share of the batch."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of the layers and compute the rest again: less memory, about a third more time."""
    epochs: float
    warmup: float = 0.05
    weight_decay: float = 0.01
    sequence_weight: float = 1.0
    """Weight of the cross-entropy on the teacher's traces."""
    distribution_weight: float = 1.0
    """Weight of KL(target ‖ student's label distribution)."""
    votes_share: float = 0.5
    """Share of annotator votes in the target distribution, the rest is the teacher's; where there are no votes, 0."""
    flip: bool = True
    """Mirror half of the images, left to right."""
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    """What else is done to them; they cannot be mixed, as each has a text of its own."""
    freeze_vision: bool = False
    """Leave the vision tower as it is; the decoder is trained, and what joins it to the tower."""
    precision: Precision = "fp32"
    save_steps: int = 500

    def __post_init__(self) -> None:
        positive(self, "learning_rate", "batch_size", "epochs", "save_steps")
        if self.augment.mixup:
            raise ConfigError(f"student.augment.mixup is {self.augment.mixup!r}; a response belongs to one image")
        whole_batches("batch_size", self.batch_size, self.micro_batch)
        if self.prompt is not None and self.prompt.image_first:
            raise ConfigError(
                "student.prompt.image_first is true, but a student reads its instruction before the image"
            )
        if not 0.0 <= self.votes_share <= 1.0:
            raise ConfigError(f"votes_share is {self.votes_share!r}, expected a number in [0, 1]")


def _check_endpoint(endpoint: str | None, model: str | None) -> None:
    if (endpoint is None) != (model is None):
        raise ConfigError("endpoint and model belong together: the server's URL and the model's name there")
