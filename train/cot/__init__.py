"""Five-part reasoning for samples that have none: from measured cues, or from a strong model.

The latter is in `emocaliber.train.cot.prompted`, which loads the evaluation layer and is left out here for that reason.
"""

from __future__ import annotations

from .build import Built, Outcome, Writer, build_reasoning
from .grounded import CueWriter

__all__ = ["Built", "CueWriter", "Outcome", "Writer", "build_reasoning"]
