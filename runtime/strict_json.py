"""JSON as the formats of this package mean it: no NaN or infinity, no key twice."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from .errors import ArtifactError


def parse_json(text: str, where: str) -> Any:
    """Returns the value a JSON text holds.

    Args:
        text: The JSON.
        where: What is being read, for messages.

    Raises:
        ArtifactError: If it is not JSON, is nested too deep, holds a number that is not finite or the same key twice.
    """
    try:
        return json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite_float, object_pairs_hook=_unique_pairs
        )
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not valid JSON: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ArtifactError(f"holds {name}; numbers must be finite")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ArtifactError(f"holds {digits}; numbers must be finite")
    return value


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ArtifactError(f"holds the key {key[:80]!r} twice")
    return mapping
