"""The curves of a training run as one SVG drawing, which follows light and dark; drawn in some milliseconds.

Like the report's drawings it is written here and not by a plotting library, which would take longer to load and draw
than a small run's step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .stated import BINS, ECE_RESPONSES, TALLY, Tally, pooled

Floats = NDArray[np.float64]

PANELS = {
    "loss": "loss",
    "reward": "reward",
    "mean_token_accuracy": "token accuracy",
    "brier": "Brier score",
    "ece": f"ECE, newest {ECE_RESPONSES} responses",
    "parse_rate": "parse rate",
    "confidence_entropy": "entropy of stated confidences, nats",
    "learning_rate": "learning rate",
}
"""Logged figures that are drawn where a run has them, and their titles."""
LEFT_OUT = ("loss", "learning_rate")
"""Not drawn for stage *calibrate*: its loss is the Brier score and more, or a policy gradient's: no measure of it."""
SHARES = ("parse_rate",)
"""Figures whose axis goes from 0 to 1, so that a rate which hardly moves looks so."""

_POINTS = 300
"""A longer run is drawn in so many means."""
_WIDTH, _HEIGHT = 330, 216
_LEFT, _TOP, _RIGHT, _BOTTOM = 48, 40, 14, 30
_COLUMNS = 3
_HEAD = 46
_STYLE = """
:root { color-scheme: light dark; --page: #f7f6f3; --card: #ffffff; --ink: #1d1f24; --soft: #61656f; --line: #e2e0da;
  --accent: #3257c7; --accent-soft: #b9c7f1; --start: #d98a1f; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1d2026; --ink: #eceef2; --soft: #a3a9b6;
  --line: #343943; --accent: #7d9cf5; --accent-soft: #3b4c86; --start: #efae55; } }
text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--soft); }
.page { fill: var(--page); } .card { fill: var(--card); stroke: var(--line); } .grid { stroke: var(--line); }
.title { font-size: 17px; font-weight: 650; fill: var(--ink); }
.name { font-size: 12px; font-weight: 600; fill: var(--ink); }
.newest { font-size: 12px; font-weight: 600; fill: var(--accent); }
polyline { fill: none; stroke-linejoin: round; } .raw { stroke: var(--accent-soft); stroke-width: 1; }
.smooth { stroke: var(--accent); stroke-width: 2.2; } .bar { fill: var(--accent-soft); }
.start { stroke: var(--start); stroke-width: 2; } .key { fill: var(--start); }
"""


def curves_svg(title: str, history: Sequence[dict[str, Any]], max_steps: int) -> str:
    """Returns the drawing: a panel for each figure that was logged, and a histogram of the stated confidences.

    Args:
        title: Name of the stage.
        history: The trainer's log, one mapping a logged step.
        max_steps: Steps of the whole run.
    """
    last = max((int(entry["step"]) for entry in history), default=0)
    tallies = [entry[TALLY] for entry in history if TALLY in entry]
    hidden = LEFT_OUT if tallies else ()
    panels = []
    for key, name in PANELS.items():
        logged = [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
        if logged and key not in hidden:
            steps, values = np.array(logged, np.float64).T
            panels.append(_curve(name, steps, values, max_steps, whole=key in SHARES))
    if tallies:
        panels.append(_histogram(tallies))
    columns = max(1, min(_COLUMNS, len(panels)))
    width, height = columns * _WIDTH + 16, math.ceil(len(panels) / columns) * _HEIGHT + _HEAD + 16
    placed = [
        f'<g transform="translate({8 + place % columns * _WIDTH} {_HEAD + place // columns * _HEIGHT})">{panel}</g>'
        for place, panel in enumerate(panels)
    ]
    head = f"{title} · step {last} of {max_steps}"
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{escape(f"Training curves of stage {head}")}"><style>{_STYLE}</style>',
            f'<rect class="page" width="{width}" height="{height}"/>',
            f'<text class="title" x="16" y="31">{escape(head)}</text>',
            *placed,
            "</svg>\n",
        ]
    )


def _curve(name: str, steps: Floats, values: Floats, max_steps: int, *, whole: bool) -> str:
    steps, values = _thinned(steps, values)
    smooth = _smoothed(values)
    ticks = _ticks(0.0, 1.0) if whole else _ticks(float(values.min()), float(values.max()))
    low, high = ticks[0], ticks[-1]

    def points(line: Floats) -> str:
        return " ".join(
            f"{_x(step / max_steps):.1f},{_y((value - low) / (high - low)):.1f}"
            for step, value in zip(steps, line, strict=True)
        )

    parts = [_card(name, _short(float(smooth[-1]))), *_grid(ticks)]
    parts += [
        _text(_x(share), _HEIGHT - 14, f"{share * max_steps:g}", anchor)
        for share, anchor in ((0, "middle"), (0.5, "middle"), (1, "end"))
    ]
    parts.append(f'<polyline class="raw" points="{points(values)}"/>')
    parts.append(f'<polyline class="smooth" points="{points(smooth)}"/>')
    return "".join(parts)


def _histogram(tallies: Sequence[Tally]) -> str:
    """Returns the panel of the stated confidences: bars for the newest tenth of the steps, a line for the first."""
    tenth = math.ceil(len(tallies) / 10)
    start, now = (np.array(pooled(part)["count"]) for part in (tallies[:tenth], tallies[-tenth:]))
    start, now = start / start.sum(), now / now.sum()
    ticks = _ticks(0.0, float(max(start.max(), now.max())))
    parts = [_card("stated confidences", "■ now"), *_grid(ticks)]
    parts.append(f'<text class="key" x="{_WIDTH - 64}" y="26" text-anchor="end">▬ start</text>')
    parts += [_text(_x(share), _HEIGHT - 14, f"{share:g}", "middle") for share in (0, 0.25, 0.5, 0.75, 1)]
    outline = []
    for place in range(BINS):
        left, right = _x(place / BINS), _x((place + 1) / BINS)
        top = _y(now[place] / ticks[-1])
        tip = f"{place / BINS:.2f} to {(place + 1) / BINS:.2f}: {start[place]:.1%} at the start, {now[place]:.1%} now"
        parts.append(
            f'<rect class="bar" x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" '
            f'height="{_y(0) - top:.1f}"><title>{tip}</title></rect>'
        )
        level = _y(start[place] / ticks[-1])
        outline += [f"{left:.1f},{level:.1f}", f"{right:.1f},{level:.1f}"]
    parts.append(f'<polyline class="start" points="{" ".join(outline)}"/>')
    return "".join(parts)


def _thinned(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Returns at most `_POINTS` points, means of as many neighbours each."""
    size = math.ceil(len(steps) / _POINTS)
    starts = np.arange(0, len(steps), size)
    counts = np.diff([*starts, len(steps)])
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _smoothed(values: Floats) -> Floats:
    """Returns the running mean over the newest tenth of the points, fewer at the start."""
    size = max(1, round(len(values) / 10))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - size, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _ticks(low: float, high: float) -> list[float]:
    """Returns three to seven round numbers that enclose the range."""
    reach = max(high - low, abs(high) / 20, 1e-9)
    power = 10.0 ** math.floor(math.log10(reach))
    step = next(power * factor for factor in (0.2, 0.5, 1.0, 2.0, 5.0) if reach <= 4.5 * power * factor)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, max(last, first + 1) + 1)]


def _short(value: float) -> str:
    """Returns a number in at most six characters or so: ``0.85``, ``3.1e-5``."""
    if value == 0.0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:.3g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def _card(name: str, newest: str) -> str:
    return (
        f'<rect class="card" x="4" y="4" width="{_WIDTH - 8}" height="{_HEIGHT - 8}" rx="12"/>'
        f'<text class="name" x="16" y="26">{escape(name)}</text>'
        f'<text class="newest" x="{_WIDTH - 16}" y="26" text-anchor="end">{escape(newest)}</text>'
    )


def _grid(ticks: Sequence[float]) -> list[str]:
    parts = []
    for tick in ticks:
        y = _y((tick - ticks[0]) / (ticks[-1] - ticks[0]))
        parts.append(f'<line class="grid" x1="{_x(0)}" y1="{y:.1f}" x2="{_x(1)}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 6, y + 4, _short(tick), "end"))
    return parts


def _x(share: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * share


def _y(share: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
