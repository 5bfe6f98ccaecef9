"""The plot of ``export tune``: what each precision costs in time, and what it does to the probabilities."""

from __future__ import annotations

from html import escape
from math import ceil, floor, log10

from .tuning import Trial, Tuning

_WIDTH, _HEIGHT = 560, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 20, 320
_LEAST_DRIFT = 1e-6
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#61656f}.name{fill:#1d1f24;font-weight:600}"
    ".grid{stroke:#e2e0da}.limit{stroke:#d2483f;stroke-dasharray:4 4}.dot{fill:#b9c7f1;stroke:#3257c7}"
    ".front .dot{fill:#3257c7}.proposed .dot{stroke:#1c7c54;stroke-width:4}"
)


def tuning_svg(tuning: Tuning) -> str:
    """Returns an SVG document: latency across, drift upwards (logarithmic), area by size on disk.

    Filled dots are on the Pareto front, the ringed one is proposed, the dashed line is the drift that was accepted.
    """
    trials = tuning.trials
    right = 1.1 * max(trial.latency_ms for trial in trials)
    drifts = [max(trial.drift.estimate, _LEAST_DRIFT) for trial in trials] + [tuning.max_drift]
    low, high = floor(log10(min(drifts))), max(ceil(log10(max(drifts))), floor(log10(min(drifts))) + 1)

    def x(latency_ms: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * latency_ms / right

    def y(drift: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (log10(max(drift, _LEAST_DRIFT)) - low) / (high - low)

    listed = "; ".join(f"{t.precision} {t.latency_ms:.1f} ms, {t.drift.estimate:.2g} nat" for t in trials)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"Drift against latency: {listed}")}" '
        f'xmlns="http://www.w3.org/2000/svg"><style>{_STYLE}</style><rect width="100%" height="100%" fill="#ffffff"/>'
    ]
    for power in range(low, high + 1):
        level = y(10.0**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{level:.1f}" x2="{_WIDTH - _RIGHT}" y2="{level:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{level + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        place = x(tick * right)
        parts.append(f'<text x="{place:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{tick * right:.4g}</text>')
    accepted = y(tuning.max_drift)
    parts.append(f'<line class="limit" x1="{_LEFT}" y1="{accepted:.1f}" x2="{_WIDTH - _RIGHT}" y2="{accepted:.1f}"/>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_BOTTOM + 40}" text-anchor="middle">ms an image</text>'
    )
    middle = (_TOP + _BOTTOM) / 2
    parts.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
        "drift from fp32, nats</text>"
    )
    largest = max(trial.size_bytes for trial in trials)
    parts += [_dot(trial, tuning, x(trial.latency_ms), y(trial.drift.estimate), largest) for trial in trials]
    return "".join([*parts, "</svg>\n"])


def _dot(trial: Trial, tuning: Tuning, x: float, y: float, largest: int) -> str:
    kinds = ["front"] * trial.on_front + ["proposed"] * (trial.precision == tuning.proposed)
    radius = 4 + 10 * (trial.size_bytes / largest) ** 0.5
    tip = (
        f"{trial.precision}: {trial.latency_ms:.2f} ms, {trial.size_bytes / 1e6:.1f} MB, {trial.drift.estimate:.2g} nat"
    )
    side, offset = ("end", -radius - 4) if x > 0.75 * _WIDTH else ("start", radius + 4)
    return (
        f'<g class="{" ".join(kinds)}"><title>{escape(tip)}</title><circle class="dot" cx="{x:.1f}" cy="{y:.1f}" '
        f'r="{radius:.1f}"/><text class="name" x="{x + offset:.1f}" y="{y + 4:.1f}" text-anchor="{side}">'
        f"{escape(trial.precision)}</text></g>"
    )
