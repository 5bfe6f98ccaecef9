"""Small SVG drawings for the report, coloured by the page's style sheet so that they follow light and dark.

They are written here and not by a plotting library: a few kilobytes each, sharp at any size, no fonts or colours of
their own, and a text alternative for readers who do not see them.
"""

from __future__ import annotations

from html import escape
from math import ceil

from .records import CoverageRow, Interval, ReliabilityBins, RiskCurve

_WIDTH, _HEIGHT = 300, 330
_LEFT, _TOP, _SIDE = 40, 12, 246
_STRIP_TOP, _STRIP_HEIGHT = 266, 30


def reliability_svg(bins: ReliabilityBins, title: str, ece: float | None, observed: str = "accuracy") -> str:
    """Returns a reliability diagram: what is observed in each confidence bin against the diagonal, below it the counts.

    Args:
        bins: The bins that hold samples.
        title: What is drawn, for the text alternative.
        ece: Expected calibration error, for the text alternative; None where undefined.
        observed: What the bars are.
    """
    stated = "undefined" if ece is None else f"{ece:.3f}"
    described = f"Reliability diagram of {title}: {int(bins.count.sum())} samples, ECE {stated}"
    parts = [_open(_WIDTH, _HEIGHT, described), *_axes("confidence", observed)]
    largest = int(bins.count.max())
    for low, high, count, confidence, correct in zip(
        bins.lower, bins.upper, bins.count, bins.confidence, bins.correct, strict=True
    ):
        x, width = _x(float(low)), max(_SIDE * float(high - low), 3.0)
        y, middle = _y(float(correct)), _y(float(confidence))
        tip = f"confidence {confidence:.2f}, {observed} {correct:.2f}, {int(count)} samples"
        gap_top, gap = min(y, middle), abs(y - middle)
        strip = _STRIP_HEIGHT * float(count) / largest
        parts += [
            f"<g><title>{escape(tip)}</title>",
            _rect("bar", x + 1, y, width - 2, _TOP + _SIDE - y),
            _rect("gap", x + 1, gap_top, width - 2, gap),
            _rect("count", x + 1, _STRIP_TOP + _STRIP_HEIGHT - strip, width - 2, strip),
            "</g>",
        ]
    parts.append(_line("diagonal", _x(0), _y(0), _x(1), _y(1)))
    parts.append("</svg>")
    return "".join(parts)


def coverage_svg(rows: tuple[CoverageRow, ...]) -> str:
    """Returns observed against asked coverage, one dot a row, one shade for each of up to four names."""
    names = list(dict.fromkeys(row.name for row in rows))
    listed = "; ".join(f"{row.name} asked {row.target:.2f} got {row.coverage:.3f}" for row in rows)
    parts = [_open(_WIDTH, _HEIGHT, f"Observed against asked coverage: {listed}"), *_axes("asked", "observed")]
    parts.append(_line("diagonal", _x(0), _y(0), _x(1), _y(1)))
    for row in rows:
        tip = f"{row.name}: asked {row.target:.2f}, observed {row.coverage:.3f}, mean size {row.size:.2f}"
        parts.append(
            f'<circle class="dot series{names.index(row.name) % 4}" cx="{_x(row.target):.1f}" '
            f'cy="{_y(row.coverage):.1f}" r="5"><title>{escape(tip)}</title></circle>'
        )
    parts.append("</svg>")
    return "".join(parts)


def risk_svg(curves: tuple[RiskCurve, ...]) -> str:
    """Returns error rate against coverage, one line a curve, one shade for each of up to four; the axis fits them."""
    largest = max(float(curve.risk.max()) for curve in curves)
    # Fifths, so that the quarters of the axis have two decimals.
    top = max(1, ceil(5 * largest - 1e-9)) / 5
    listed = "; ".join(f"{curve.name} area {curve.aurc:.3f}" for curve in curves)
    parts = [
        _open(_WIDTH, _HEIGHT, f"Error rate against the most confident share: {listed}"),
        *_axes("most confident share", "error rate", top),
    ]
    for position, curve in enumerate(curves):
        points = " ".join(
            f"{_x(float(x)):.1f},{_y(float(y) / top):.1f}" for x, y in zip(curve.coverage, curve.risk, strict=True)
        )
        parts.append(
            f'<polyline class="curve line{position % 4}" points="{points}"><title>{escape(curve.name)}, area '
            f"{curve.aurc:.3f}</title></polyline>"
        )
    parts.append("</svg>")
    return "".join(parts)


def interval_svg(interval: Interval, title: str) -> str:
    """Returns a number line with zero, the estimate and its interval."""
    reach = 1.15 * max(abs(interval.low), abs(interval.high), abs(interval.estimate), 1e-6)

    def place(value: float) -> float:
        return 180 + 165 * value / reach

    described = f"{title}: {interval.estimate:+.4f}, interval {interval.low:+.4f} to {interval.high:+.4f}"
    return "".join(
        [
            _open(360, 54, described, "line"),
            _line("axis", 10, 26, 350, 26),
            _line("zero", 180, 8, 180, 40),
            _text("tick", 180, 52, "0", "middle"),
            _line("span", place(interval.low), 26, place(interval.high), 26),
            _line("end", place(interval.low), 19, place(interval.low), 33),
            _line("end", place(interval.high), 19, place(interval.high), 33),
            f'<circle class="dot series0" cx="{place(interval.estimate):.1f}" cy="26" r="6"/>',
            "</svg>",
        ]
    )


def _axes(horizontal: str, vertical: str, top: float = 1.0) -> list[str]:
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line("grid", _x(0), _y(tick), _x(1), _y(tick)))
        parts.append(_text("tick", _LEFT - 6, _y(tick) + 4, f"{round(tick * top, 4):g}", "end"))
        parts.append(_text("tick", _x(tick), _STRIP_TOP + _STRIP_HEIGHT + 14, f"{tick:g}", "middle"))
    parts.append(_text("axis-name", _x(0.5), _STRIP_TOP + _STRIP_HEIGHT + 29, horizontal, "middle"))
    x, y = 9, _y(0.5)
    parts.append(
        f'<text class="axis-name" x="{x}" y="{y:.1f}" text-anchor="middle" transform="rotate(-90 {x} {y:.1f})">'
        f"{escape(vertical)}</text>"
    )
    return parts


def _x(value: float) -> float:
    return _LEFT + _SIDE * value


def _y(value: float) -> float:
    return _TOP + _SIDE * (1 - value)


def _open(width: int, height: int, described: str, kind: str = "chart") -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(described)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{max(height, 0):.1f}"/>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
