"""Sections of the report that one evaluation run has: the paper's figures, the constant baseline, risk, confusions."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from .charts import risk_svg
from .records import BaselineRow, BenchmarkRow, Confusion, RiskCurve

_COLOURS = ("var(--accent)", "var(--s1)", "var(--s2)", "var(--s3)")
_COMPARED = (("acc", "accuracy"), ("f1", "F1"), ("ece", "ECE"), ("brier", "Brier"), ("auroc", "AUROC"))


def series_key(names: Iterable[str]) -> str:
    """Returns the key of a drawing whose series have these names, in order."""
    items = (f'<li><i style="background:{_COLOURS[i % 4]}"></i>{escape(name)}</li>' for i, name in enumerate(names))
    return f'<ul class="key">{"".join(items)}</ul>'


def benchmark_section(rows: tuple[BenchmarkRow, ...]) -> str:
    """Returns the table of tasks and groups, each figure with the paper's under it; empty without rows."""
    if not rows:
        return ""
    columns = [(name, title) for name, title in _COMPARED if any(row.measured.get(name) is not None for row in rows)]
    body = []
    for row in rows:
        cells = "".join(_beside(row.measured.get(name), row.published.get(name)) for name, _ in columns)
        kind = ' class="total"' if row.is_group else ""
        body.append(f'<tr{kind}><th scope="row">{escape(row.name)}</th>{cells}<td>{row.n:,}</td></tr>')
    head = "".join(f'<th scope="col">{title}</th>' for _, title in columns)
    return (
        "<section><h2>Beside the paper</h2>\n"
        '<p class="hint">Small print is what the EmoCaliber paper reports, in per cent as the number above it. The '
        "accuracy of a group is the mean over its tasks, as in the paper.</p>\n"
        '<div class="card scroll" tabindex="0" role="region" aria-label="Benchmark table"><table><thead><tr>'
        f'<th scope="col">VECBench</th>{head}<th scope="col">n</th></tr></thead><tbody>{"".join(body)}</tbody></table>'
        "</div></section>"
    )


def baseline_section(rows: tuple[BaselineRow, ...]) -> str:
    """Returns the table of confidences beside the constant of each task; empty without rows."""
    if not rows:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th>{_duel(row.brier, row.constant_brier)}'
        f"<td>{row.constant_brier:.3f}</td><td>{_number(row.auroc)}</td><td>{_number(row.constant_auroc)}</td>"
        f"<td>{_number(row.auroc_within)}</td></tr>"
        for row in rows
    )
    return (
        "<section><h2>Is the confidence worth more than a constant?</h2>\n"
        '<p class="hint">The constant states the accuracy of the task for every image. A Brier score above its own, in '
        "red, says that the confidences are worth less than knowing which task it is. Within tasks the constant has an "
        "AUROC of 0.5.</p>\n"
        '<div class="card scroll" tabindex="0" role="region" aria-label="Baseline table"><table><thead><tr>'
        '<th scope="col">task</th><th scope="col">Brier</th><th scope="col">Brier of the constant</th>'
        '<th scope="col">AUROC</th><th scope="col">AUROC of the constant</th><th scope="col">AUROC within tasks</th>'
        f"</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def risk_section(curves: tuple[RiskCurve, ...]) -> str:
    """Returns the drawing of up to four risk-coverage curves and the table of all areas; empty without curves."""
    if not curves:
        return ""
    drawn = curves[:4]
    body = "".join(
        f'<tr><th scope="row">{escape(curve.name)}</th><td>{curve.aurc:.3f}</td>'
        f"<td>{_risk_at(curve, 0.5):.1%}</td><td>{_risk_at(curve, 0.8):.1%}</td><td>{curve.risk[-1]:.1%}</td></tr>"
        for curve in curves
    )
    return (
        "<section><h2>What if it may stay silent?</h2>\n"
        '<p class="hint">Errors among the images it is surest of. A curve that rises to the right is a confidence that '
        "sorts right from wrong; a flat one sorts nothing.</p>\n"
        f'<div class="pair"><figure class="card">{series_key(curve.name for curve in drawn)}{risk_svg(drawn)}</figure>'
        '<div class="card scroll" tabindex="0" role="region" aria-label="Risk table"><table><thead><tr>'
        '<th scope="col">task</th><th scope="col">area (AURC)</th><th scope="col">errors in the surest half</th>'
        '<th scope="col">in the surest 80%</th><th scope="col">in all</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div></div></section>"
    )


def confusion_section(confusions: tuple[Confusion, ...]) -> str:
    """Returns one shaded matrix a task, folded but for the first; empty without any."""
    if not confusions:
        return ""
    cards = "".join(_confusion(confusion, position == 0) for position, confusion in enumerate(confusions))
    return (
        "<section><h2>What is taken for what?</h2>\n"
        '<p class="hint">Rows are right labels, columns answers; numbers are per cent of the row. Darker is more; a '
        f"frame marks the right answer.</p>\n{cards}</section>"
    )


def _confusion(confusion: Confusion, is_open: bool) -> str:
    head = "".join(f'<th scope="col"><span>{escape(answer)}</span></th>' for answer in confusion.answers)
    body = []
    for label, counts in zip(confusion.labels, confusion.counts, strict=True):
        total = int(counts.sum())
        cells = []
        for answer, count in zip(confusion.answers, counts, strict=True):
            share = int(count) / total if total else 0.0
            kind = ' class="hit"' if answer == label else ""
            text = f"{100 * share:.0f}" if count else ""
            cells.append(
                f'<td{kind} style="--share:{share:.3f}" title="{escape(label)} answered {escape(answer)}: {int(count)} '
                f'of {total}">{text}</td>'
            )
        body.append(f'<tr><th scope="row">{escape(label)}<small>{total:,}</small></th>{"".join(cells)}</tr>')
    return (
        f'<details class="card confusion"{" open" if is_open else ""}><summary>{escape(confusion.task)}</summary>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix of {escape(confusion.task)}">'
        f'<table class="matrix"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        "</details>\n"
    )


def _beside(measured: float | None, published: float | None) -> str:
    small = "" if published is None else f"<small>{100 * published:.2f}</small>"
    value = '<span class="open">&ndash;</span>' if measured is None else f"{100 * measured:.2f}"
    return f"<td>{value}{small}</td>"


def _duel(value: float, constant: float) -> str:
    kind = "bad" if value > constant else "good"
    return f'<td><span class="{kind}">{value:.3f}</span></td>'


def _number(value: float | None) -> str:
    return '<span class="open">&ndash;</span>' if value is None else f"{value:.3f}"


def _risk_at(curve: RiskCurve, coverage: float) -> float:
    position = int(abs(curve.coverage - coverage).argmin())
    return float(curve.risk[position])
