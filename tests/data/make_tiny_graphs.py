"""Makes ``tests/data/tiny_graphs``: the ONNX graphs of tiny random models, for what reads graphs and needs no model.

Run from the repository root: ``PYTHONPATH=.dev:tests python tests/data/make_tiny_graphs.py``
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tiny_families import tiny_family
from tiny_model import build_model, build_processor

from emocaliber.export.graphs import GRAPHS, VISION, export_graphs


def tiny(family: str) -> Any:
    """Returns the model of a family whose graphs are made here."""
    if family == "convolutional":
        return build_model(build_processor(), convolutional=True)
    return tiny_family(family, layers=2)[0]


if __name__ == "__main__":
    for name in sys.argv[1:] or ("convolutional", "qwen2_5_vl", "qwen3_vl"):
        folder = Path(__file__).parent / "tiny_graphs" / name
        export_graphs(tiny(name), folder)
        # But for its tower a convolutional model is the one of the tiny bundle.
        for graph in set(GRAPHS) - {VISION} if name == "convolutional" else ():
            (folder / f"{graph}.onnx").unlink()
