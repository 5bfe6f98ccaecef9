"""The seam to torch's ONNX exporter: modules in, checked graphs out, nothing printed."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import nn

from emocaliber.runtime.errors import ExportError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Names of a graph's inputs and outputs, in order."""

    inputs: list[str]
    """Of the module's arguments, lists of tensors laid out flat, None left out."""
    outputs: list[str]
    """Of what the module returns."""


def traced(
    module: nn.Module, arguments: tuple[Any, ...], dynamic: tuple[Any, ...], ports: Ports, *, name: str, opset: int
) -> onnx.ModelProto:
    """Returns a module as a graph; the exporter's prints, log lines and warnings do not reach the caller.

    Args:
        module: What to export.
        arguments: Example arguments; sizes that are to vary differ from each other and from 0 and 1.
        dynamic: Of each argument which sizes vary.
        ports: What inputs and outputs are called.
        name: Of the graph, for messages.
        opset: Operator set.

    Raises:
        ExportError: If the exporter fails, or the result lacks an input.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                module.eval(),
                arguments,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic,
                input_names=ports.inputs,
                output_names=ports.outputs,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"{name}: the ONNX exporter failed: {error}") from error
    if program is None:
        raise ExportError(f"{name}: the ONNX exporter returned nothing")
    proto = program.model_proto
    _strip(proto)
    found = [value.name for value in proto.graph.input], [value.name for value in proto.graph.output]
    if found != (ports.inputs, ports.outputs):
        raise ExportError(f"{name}: exported with inputs and outputs {found}, expected {ports}")
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter: standard output belongs to the caller, and its warnings are about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(proto: onnx.ModelProto) -> None:
    """Removes stack traces and names of source files, which the exporter stores with every node."""
    graphs = [proto.graph, *proto.functions]
    proto.ClearField("metadata_props")
    proto.doc_string = ""
    for graph in graphs:
        graph.ClearField("metadata_props")
        graph.doc_string = ""
        for node in graph.node:
            node.ClearField("metadata_props")
            node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer):
        value.ClearField("metadata_props")
        value.doc_string = ""
