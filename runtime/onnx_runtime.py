"""ONNX Runtime, told before it loads to report its use to nobody; everything here takes it from this module.

From 1.32 on its wheels write a device id below the home folder and collect events for upload as soon as they are imported.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime"]
