"""A prediction as HTML for notebooks. It takes the notebook's own text colour, so it reads on light and on dark."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .prediction import Prediction


def prediction_html(prediction: Prediction) -> str:
    """Returns a heading, one row with a bar for each label, most probable first, and what to know of the numbers.

    All text is escaped. Labels of the prediction set are in bold type, bars of the others are lighter.
    """
    kept = prediction.prediction_set()
    ranked = sorted(prediction.distribution.items(), key=lambda item: -item[1])
    rows = "".join(_row(label, p, inside=label in kept) for label, p in ranked)
    state = "calibrated" if prediction.calibrated else "not calibrated: a ranking, not probabilities"
    notes = [f"{prediction.coverage:.0%} set in bold type; {prediction.taxonomy}, {prediction.mode} mode, {state}"]
    notes += prediction.notes()
    notes += [f"{tag}: {text}" for tag, text in (prediction.reasoning or {}).items()]
    lines = "".join(f'<div style="opacity:0.75">{_text(note)}</div>' for note in notes)
    heading = _text(f"{prediction.label} ({prediction.confidence:.1%} sure)")
    return (
        f'<div style="max-width:40em;color:inherit"><div style="font-weight:bold">{heading}</div>'
        f'<table style="width:100%;border-collapse:collapse;color:inherit">{rows}</table>{lines}</div>'
    )


def _row(label: str, probability: float, *, inside: bool) -> str:
    weight, opacity = ("bold", 0.8) if inside else ("normal", 0.35)
    cell = f"padding:1px 6px;background:none;color:inherit;font-weight:{weight}"
    bar = f"height:0.8em;width:{100 * probability:.1f}%;background:currentColor;opacity:{opacity}"
    return (
        f'<tr style="background:none"><th scope="row" style="{cell};text-align:left">{_text(label)}</th>'
        f'<td style="{cell};text-align:right">{probability:.1%}</td>'
        f'<td style="{cell};width:60%"><div style="{bar}"></div></td></tr>'
    )


def _text(text: str) -> str:
    """Returns the text escaped, and kept from turning the direction of what stands around it."""
    return f"<bdi>{escape(text)}</bdi>"
