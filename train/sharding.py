"""A model's weights, gradients and optimiser state spread over the processes: FSDP as accelerate runs it."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

from emocaliber.runtime.errors import ConfigError

from .launch import processes


def sharding_arguments(*, checkpointing: bool) -> dict[str, Any]:
    """Returns the arguments of `TrainingArguments` that shard a model layer by layer over all processes.

    Args:
        checkpointing: Whether FSDP also drops the activations of every layer and computes them again.

    Raises:
        ConfigError: If this is the only process.
    """
    state = processes()
    if state.num_processes == 1:
        raise ConfigError(
            "launch.shard spreads the weights over processes, but this is the only one; start the stage with "
            "'emocaliber train' or a launcher, or say --set launch.shard=false"
        )
    arguments: dict[str, Any] = {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "reshard_after_forward": True,
            "state_dict_type": "FULL_STATE_DICT",
            "activation_checkpointing": checkpointing,
        },
    }
    if state.device.type == "cpu":
        # accelerate hands its FSDP plugin to every kind of device but processors (AcceleratorState, as of 1.15), though
        # FSDP runs there over gloo. The name of the kind is all that stands in the way.
        AcceleratorState._reset_state(reset_partial_state=True)
        processes().distributed_type = DistributedType.MULTI_GPU
        arguments["accelerator_config"] = {"use_configured_state": True}
    return arguments


def is_sharded(model: Any) -> bool:
    """Returns whether FSDP has spread a model, or a layer, over the processes."""
    return isinstance(model, FSDPModule)


class ShardedModel(TrainerCallback):
    """Sets right what a sharded model needs besides; does nothing to any other."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keeps the processes in step where they generate, and the output layer's gradient whole."""
        if not is_sharded(model):
            return
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        # Every process goes on until the last one's response ends: each layer is gathered by all of them at once.
        base._is_fsdp_managed_module = True
        head = base.get_output_embeddings()
        if is_sharded(head):
            # TRL reads the head's weight instead of calling the head. Gathered that way, each process would keep the
            # gradient of its own samples alone; unsharded by FSDP, its gradient is reduced like every other.
            base.register_forward_pre_hook(lambda module, inputs: head.unshard() and None)


def whole_weights(model: Any) -> dict[str, torch.Tensor] | None:
    """Returns a sharded model's weights by name, whole and on the CPU, or None for a model that is not sharded.

    All processes must call it; those that are not the main one get an empty mapping.
    """
    if not is_sharded(model):
        return None
    weights: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return weights
