"""Engines of TensorRT or TensorRT-RTX, built on the target device by ``emocaliber export tensorrt``."""
