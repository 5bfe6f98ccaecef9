"""The runtime is light: it works where nothing of the training stack can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import emocaliber.runtime as runtime

HEAVY = ("torch", "transformers", "trl", "datasets", "onnx", "onnxscript", "scipy", "sklearn", "matplotlib")

# A module set to None cannot be imported. "Not in sys.modules" would not catch an import that is tried and caught.
SCRIPT = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None
import numpy as np
from emocaliber.runtime import EmotionModel
with EmotionModel.load(sys.argv[1], engine="cpu", threads=1) as model:
    image = np.full((20, 30, 3), 128, dtype=np.uint8)
    for mode in ("direct", "reason"):
        prediction = model.predict(image, mode=mode)
        assert abs(sum(prediction.distribution.values()) - 1) < 1e-9
print("done")
"""


def test_load_and_predict_without_the_heavy_libraries(tiny_bundle: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_bundle)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_importing_the_package_alone_loads_no_library() -> None:
    code = (
        "import sys, emocaliber.runtime; print(sorted({'numpy', 'PIL', 'onnxruntime', 'tokenizers'} & {*sys.modules}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_exported_names() -> None:
    assert list(runtime.__all__) == sorted(runtime.__all__)
    for name in runtime.__all__:
        assert getattr(runtime, name) is not None
    modules = {path.stem for path in Path(runtime.__file__).parent.iterdir()}
    public = {name for name in vars(runtime) if not name.startswith("_") and name not in modules}
    assert public - set(runtime.__all__) <= {"TYPE_CHECKING", "Any", "import_module"}
    with pytest.raises(AttributeError, match="Emotions"):
        _ = runtime.Emotions
