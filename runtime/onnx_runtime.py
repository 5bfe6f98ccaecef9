"""ONNX Runtime, told before it loads to report its use to nobody; everything here takes it from this module.

Its wheel 1.32 writes a device id below the home folder, keeps a queue of events there, as soon as it is imported.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime"]
