"""What the service allows, so that no request can take more than its share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emocaliber.runtime.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Limits of the service. At most ``capacity * max_body_bytes`` of uploads are in memory."""

    max_body_bytes: int = 16 * 2**20
    """Size of a request's body, in bytes; base64 makes an image a third larger."""
    max_pixels: int = 50_000_000
    """Width times height of an image, in pixels; one image is decoded at a time."""
    time_limit_s: float = 30.0
    """Seconds a request may take, upload and waiting included."""
    capacity: int = 32
    """Requests that are uploaded, waiting or computed at once; more are sent away with 503."""
    max_batch: int = 16
    """Waiting images that are computed together."""

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_pixels", "capacity", "max_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected a positive integer")
        if not 0.0 < self.time_limit_s < math.inf:
            raise ConfigError(f"time_limit_s is {self.time_limit_s!r}, expected a positive number of seconds")
