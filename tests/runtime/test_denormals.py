"""Denormal floats are zeros in a run, and what they were for the application before and after."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from emocaliber.runtime import engine as engine_module
from emocaliber.runtime.denormals import CAN_FLUSH, denormals_as_zero

pytestmark = pytest.mark.skipif(not CAN_FLUSH, reason="needs Linux on an x86-64 processor")

DENORMAL = np.float32(1e-40)
FIRST_SESSION = """
import sys
from pathlib import Path
import numpy as np
from emocaliber.runtime import engine
engine._session(Path(sys.argv[1]), "cpu", 2)
print((np.full(99, 1e-40, np.float32) * np.float32(0.5)).all())
"""


@pytest.fixture
def halving(tmp_path: Path) -> Path:
    """A graph that halves a vector."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    half = numpy_helper.from_array(np.float32(0.5), "half")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "half"], ["y"])], "halving", ports[:1], ports[1:], [half])
    path = tmp_path / "halving.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def kept() -> bool:
    return bool((np.full(99, DENORMAL) * np.float32(0.5)).all())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_takes_them_as_zeros_in_all_its_threads(halving: Path, threads: int) -> None:
    session = engine_module._session(halving, "cpu", threads)
    (halved,) = engine_module._run(session, ["y"], {"x": np.full(1 << 22, DENORMAL)})
    assert not halved.any()
    assert kept()


def test_the_first_session_of_a_process_leaves_its_thread_as_it_was(halving: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_SESSION, str(halving)], capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr


def test_they_come_back_after_an_error() -> None:
    with suppress(ZeroDivisionError), denormals_as_zero():
        assert not kept()
        raise ZeroDivisionError
    assert kept()
