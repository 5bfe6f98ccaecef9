"""One self-contained HTML page from evaluation results: tables, reliability diagrams, coverage, and a gallery.

The page loads nothing: style, drawings and images are inside it, and its content security policy says so. Every text
that comes from data is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from .charts import coverage_svg, interval_svg, reliability_svg
from .confidence_figures import VOTE_FIGURES
from .metrics import reliability_curve
from .records import Comparison, CoverageRow, Example, ReportData, StageResult
from .report_sections import baseline_section, benchmark_section, confusion_section, risk_section, series_key

Column = tuple[str, str, str, bool | None]
"""Metric name, heading, format, and whether higher is better (None: no better or worse)."""

_COLUMNS: tuple[Column, ...] = (
    ("accuracy", "accuracy", "{:.1%}", True),
    ("bayes_accuracy", "best possible", "{:.1%}", None),
    ("f1", "F1", "{:.3f}", True),
    ("macro_f1", "F1, macro", "{:.3f}", True),
    ("kl", "KL, nats", "{:.3f}", False),
    ("ece", "ECE", "{:.3f}", False),
    ("ece_votes", "ECE, votes", "{:.3f}", False),
    ("ece_smooth", "ECE, smooth", "{:.3f}", False),
    ("brier", "Brier", "{:.3f}", False),
    ("brier_votes", "Brier, votes", "{:.3f}", False),
    ("brier_skill", "Brier skill", "{:.3f}", True),
    ("auroc", "AUROC", "{:.3f}", True),
    ("auroc_within", "AUROC, within tasks", "{:.3f}", True),
    ("e_aurc", "E-AURC", "{:.3f}", False),
    ("nll", "NLL, nats", "{:.3f}", False),
    ("verbalized_brier", "Brier, verbalised", "{:.3f}", False),
    ("parse_rate", "answered", "{:.1%}", True),
    ("n", "n", "{:,.0f}", None),
    ("seconds", "seconds", "{:,.0f}", None),
)
_MORE: tuple[Column, ...] = (
    ("ece_paper", "ECE, paper's bins", "{:.3f}", False),
    ("ece_equal_mass", "ECE, equal mass", "{:.3f}", False),
    ("ece_debiased", "ECE, debiased", "{:.3f}", False),
    ("ece_classwise", "ECE, classwise", "{:.3f}", False),
    ("log_loss", "log loss", "{:.3f}", False),
    ("brier_reliability", "Brier: reliability", "{:.4f}", False),
    ("brier_resolution", "resolution", "{:.4f}", True),
    ("brier_uncertainty", "uncertainty", "{:.4f}", None),
    ("brier_within", "within bins", "{:.4f}", None),
    ("aurc", "AURC", "{:.3f}", False),
)
_VOTES: tuple[Column, ...] = (
    ("js", "JS, nats", "{:.3f}", False),
    ("chebyshev", "Chebyshev", "{:.3f}", False),
    ("clark", "Clark", "{:.3f}", False),
    ("canberra", "Canberra", "{:.3f}", False),
    ("cosine", "cosine", "{:.3f}", True),
    ("intersection", "intersection", "{:.3f}", True),
)
_SETS: tuple[Column, ...] = (
    ("set_target", "asked coverage", "{:.0%}", None),
    ("set_coverage", "observed coverage", "{:.1%}", None),
    ("set_coverage_votes", "observed coverage, votes", "{:.1%}", None),
    ("set_size", "mean size", "{:.2f}", None),
)

_GLOSSARY = {
    "accuracy": "share of images whose most probable label is the right one",
    "best possible": "Bayes accuracy: what a classifier that knew the true distribution would reach",
    "F1": "F1 of each label, weighted by how often it is right; macro: every label counts the same",
    "constant": "what reaches who knows only the task: its most frequent label, its accuracy as confidence, the "
    "frequencies of its labels as distribution and as prediction set",
    "KL": "distance of the predicted from the true distribution; 0 is equal",
    "ECE": "expected calibration error: how far stated confidence is from observed accuracy, on average over the bins",
    "ECE, smooth": "the same without bins, by a kernel whose width the error itself chooses",
    "ECE, paper's bins": "ten bins that leave out a confidence of exactly 1",
    "ECE, debiased": "root mean square over bins of equal mass, less what chance alone adds",
    "Brier skill": "1 less the Brier score over that of the constant; below 0 is worse than the constant",
    "Brier: reliability, resolution, uncertainty": "its parts: gap of the bins, spread of the bins, score of the mean",
    "log loss": "negative log likelihood of the confidence being right or wrong, nats",
    "Brier": "squared error of the confidence against being right; lower is better, and no bluff lowers it",
    "AUROC": "chance that a right answer has a higher confidence than a wrong one; 0.5 is guessing",
    "E-AURC": "errors among the surest answers beyond those of the best order of the same answers; 0 is best",
    "NLL": "negative log likelihood of the right label",
    "votes": "an answer, and a set, is right with the chance that an annotator drawn from the votes gave its label",
    "verbalised": "of the confidence that the model wrote itself, before any fitted calibrator",
    "coverage": "share of prediction sets that hold the right label",
}


def render_report(data: ReportData) -> str:
    """Returns the report as the text of one HTML file, for any browser, light or dark, wide or narrow."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    # Where all was voted on, the same figures against the labels are folded away.
    voted = bool(data.stages) and all(stage.by_votes for stage in data.stages)
    folded = [column for column in _COLUMNS if voted and f"{column[0]}_votes" in VOTE_FIGURES]
    shown = [column for column in _COLUMNS if column not in folded]
    sections = [
        _stages(shown, data.stages, data.ranked),
        _folded("More ways to look at the confidence", [*folded, *_MORE], data),
        _folded("More distances to the votes", _VOTES, data),
        _folded("Prediction sets", _SETS, data),
        _reliability(data.stages),
        _comparisons(data.comparisons),
        benchmark_section(data.benchmark),
        baseline_section(data.baselines),
        risk_section(data.risks),
        _coverage(data.coverage),
        confusion_section(data.confusions),
        _mistakes(data.mistakes),
        _gallery(data.examples),
        _notes(data.notes),
        _glossary(),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(data.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{escape(data.title)}</h1>\n<p class="lead">{escape(data.subtitle)}</p>\n'
        f"{_facts(data.facts)}</header>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n<footer>Written by emocaliber. This file is complete: it loads nothing from anywhere.</footer>\n"
        "</body>\n</html>\n"
    )


def _facts(facts: dict[str, str]) -> str:
    if not facts:
        return ""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{rows}</dl>\n'


def _stages(columns: Sequence[Column], stages: tuple[StageResult, ...], ranked: bool) -> str:
    table = _table(columns, stages, ranked, "Results table")
    if not table:
        return ""
    hints = ["Small print under a number is its bootstrap interval"]
    if any(stage.baseline for stage in stages):
        hints.append("under it, in brackets, what a constant for each task reaches")
    if ranked:
        hints.append("green is the best of a column")
    return f'<section><h2>Results</h2>\n<p class="hint">{"; ".join(hints)}.</p>\n{table}</section>'


def _folded(title: str, columns: Sequence[Column], data: ReportData) -> str:
    table = _table(columns, data.stages, data.ranked, title)
    return table and f'<details class="more"><summary>{escape(title)}</summary>{table}</details>'


def _table(columns: Sequence[Column], stages: tuple[StageResult, ...], ranked: bool, name: str) -> str:
    """Returns the stages against those columns that one of them has; empty without any."""
    columns = [column for column in columns if any(stage.metrics.get(column[0]) is not None for stage in stages)]
    if not columns:
        return ""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for _, title, _, _ in columns)
    best = {name: _best(stages, name, higher if ranked else None) for name, _, _, higher in columns}
    body = []
    for stage in stages:
        cells = "".join(_cell(stage, name, form, best[name]) for name, _, form, _ in columns)
        body.append(
            f'<tr><th scope="row">{escape(stage.title)}<small>{escape(stage.mode)} mode</small></th>{cells}</tr>'
        )
    return (
        f'<div class="card scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table>'
        f'<thead><tr><th scope="col">{"stage" if ranked else "task"}</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _best(stages: tuple[StageResult, ...], name: str, higher: bool | None) -> float | None:
    values = [value for stage in stages if (value := stage.metrics.get(name)) is not None]
    if higher is None or len(values) < 2:
        return None
    return max(values) if higher else min(values)


def _cell(stage: StageResult, name: str, form: str, best: float | None) -> str:
    value = stage.metrics.get(name)
    if value is None:
        return '<td><span class="open">&ndash;</span></td>'
    bounds = stage.intervals.get(name)
    small = "" if bounds is None else f"<small>{form.format(bounds[0])} &ndash; {form.format(bounds[1])}</small>"
    constant = stage.baseline.get(name)
    beside = "" if constant is None else f'<small class="constant">[{form.format(constant)}]</small>'
    kind = ' class="best"' if value == best else ""
    return f"<td><span{kind}>{form.format(value)}</span>{small}{beside}</td>"


def _reliability(stages: tuple[StageResult, ...]) -> str:
    figures = []
    for stage in stages:
        if not stage.confidence.size:
            continue
        ece = stage.metrics.get("ece_votes" if stage.by_votes else "ece")
        observed = "share of votes" if stage.by_votes else "accuracy"
        drawing = reliability_svg(reliability_curve(stage.confidence, stage.correct), stage.title, ece, observed)
        caption = "ECE undefined" if ece is None else f"ECE {ece:.3f}"
        caption += " against the votes" if stage.by_votes else ""
        figures.append(
            f'<figure class="card"><h3>{escape(stage.title)}</h3><span class="caption">{stage.mode} mode, {caption}, '
            f"{stage.confidence.size:,} images</span>{drawing}</figure>"
        )
    if not figures:
        return ""
    return (
        "<section><h2>When it says 70 %, is it right 70 % of the time?</h2>\n"
        '<p class="hint">A bar that ends on the dashed diagonal is a confidence that can be believed. '
        "Where people voted, an answer is as right as the share of them that gave it.</p>\n"
        '<ul class="key"><li><i class="k-bar"></i>how right the images of a bin are</li>'
        '<li><i class="k-gap"></i>gap to the stated confidence</li>'
        '<li><i class="k-count"></i>how many images, below the axis</li></ul>\n'
        f'<div class="grid">{"".join(figures)}</div></section>'
    )


def _comparisons(comparisons: tuple[Comparison, ...]) -> str:
    if not comparisons:
        return ""
    return (
        "<section><h2>Did it get better?</h2>\n"
        '<p class="hint">Paired on the same images: an interval that does not reach zero is a difference.</p>\n'
        f'<div class="comparisons">{"".join(map(_comparison, comparisons))}</div></section>'
    )


def _comparison(comparison: Comparison) -> str:
    interval = comparison.interval
    if interval.low <= 0 <= interval.high:
        verdict, kind = "no clear difference", "open"
    elif (interval.high < 0) == comparison.lower_is_better:
        verdict, kind = "better", "good"
    else:
        verdict, kind = "worse", "bad"
    return (
        f'<div class="card comparison"><h3>{escape(comparison.title)}</h3>'
        f'<div><span class="number {kind}">{interval.estimate:+.4f}</span> '
        f'<span class="caption">{interval.level:.0%} interval {interval.low:+.4f} to {interval.high:+.4f}: {verdict}'
        f"</span></div>{interval_svg(interval, comparison.title)}</div>\n"
    )


def _coverage(rows: tuple[CoverageRow, ...]) -> str:
    if not rows:
        return ""
    key = series_key(dict.fromkeys(row.name for row in rows))
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th><td>{row.target:.0%}</td><td>{row.coverage:.1%}</td>'
        f"<td>{row.size:.2f}</td><td>{row.n:,}</td></tr>"
        for row in rows
    )
    return (
        "<section><h2>Prediction sets</h2>\n"
        '<p class="hint">Asked for a coverage, the model returns the labels that hold the right one that often. '
        "A small set is a sure model.</p>\n"
        f'<div class="pair"><figure class="card">{key}{coverage_svg(rows)}</figure>'
        '<div class="card scroll" tabindex="0" role="region" aria-label="Coverage table"><table><thead><tr>'
        '<th scope="col">model</th><th scope="col">asked</th><th scope="col">observed</th>'
        f'<th scope="col">mean size</th><th scope="col">n</th></tr></thead><tbody>{body}</tbody></table></div></div>'
        "</section>"
    )


def _mistakes(examples: tuple[Example, ...]) -> str:
    if not examples:
        return ""
    cards = "".join(_example(example) for example in examples)
    return (
        "<section><h2>Surely wrong</h2>\n"
        '<p class="hint">The most confident mistakes: look here for wrong labels, hard images and bad habits.</p>\n'
        f'<div class="gallery">{cards}</div></section>'
    )


def _gallery(examples: tuple[Example, ...]) -> str:
    if not examples:
        return ""
    known = any(example.true is not None for example in examples)
    truth = '<li><i class="k-true"></i>true distribution</li>' if known else ""
    cards = "".join(_example(example) for example in examples)
    return (
        f'<section><h2>Examples</h2>\n<ul class="key">{truth}<li><i class="k-predicted"></i>predicted distribution</li>'
        f'<li><span class="chip">label</span> in the prediction set</li></ul>\n'
        f'<div class="gallery">{cards}</div></section>'
    )


def _example(example: Example) -> str:
    chips = "".join(f'<span class="chip">{escape(label)}</span>' for label in example.prediction_set)
    answer = "" if example.answer is None else f'<div class="caption">labelled {escape(example.answer)}</div>'
    caption = f'<p class="caption">{escape(example.caption)}</p>' if example.caption else ""
    shown = f'<div class="chips" role="group" aria-label="prediction set">{chips}</div>' if chips else ""
    return (
        f'<article class="card example"><div class="top">{_image(example)}'
        f'<div><div class="verdict">{escape(example.label)}</div>'
        f'<div class="caption">confidence {example.confidence:.0%}</div>{answer}{shown}</div></div>'
        f"{caption}{_bars(example)}{_reasoning(example.reasoning)}</article>"
    )


def _image(example: Example) -> str:
    if not example.image_png:
        return '<div class="missing">image not at hand</div>'
    kind = "image/png" if example.image_png.startswith(b"\x89PNG") else "image/jpeg"
    source = f"data:{kind};base64,{base64.b64encode(example.image_png).decode('ascii')}"
    described = example.caption or f"Example image, predicted {example.label}"
    return f'<img src="{source}" alt="{escape(described)}" loading="lazy">'


def _bars(example: Example) -> str:
    if not example.labels:
        return ""
    order = sorted(range(len(example.labels)), key=lambda k: -example.predicted[k])
    rows = []
    for k in order[:10]:
        predicted, true = example.predicted[k], None if example.true is None else example.true[k]
        tip = f"predicted {predicted:.1%}" if true is None else f"true {true:.1%}, predicted {predicted:.1%}"
        upper = "" if true is None else f'<b class="true" style="width:{100 * true:.1f}%"></b>'
        chosen = " chosen" if example.labels[k] == example.label else ""
        rows.append(
            f'<span class="name{chosen}">{escape(example.labels[k])}</span><span class="track" role="img" '
            f'aria-label="{escape(tip)}" title="{escape(tip)}">{upper}<b class="predicted" '
            f'style="width:{100 * predicted:.1f}%"></b></span><span class="value">{predicted:.0%}</span>'
        )
    left = len(order) - 10
    more = f'<p class="caption">and {left} less probable labels</p>' if left > 0 else ""
    return f'<div class="bars">{"".join(rows)}</div>{more}'


def _reasoning(reasoning: dict[str, str] | None) -> str:
    if not reasoning:
        return ""
    parts = "".join(f"<dt>{escape(tag)}</dt><dd>{escape(text)}</dd>" for tag, text in reasoning.items())
    return f'<details><summary>Reasoning</summary><dl class="parts">{parts}</dl></details>'


def _notes(notes: tuple[str, ...]) -> str:
    if not notes:
        return ""
    return (
        '<section><h2>Notes</h2>\n<ul class="notes">'
        + "".join(f"<li>{escape(note)}</li>" for note in notes)
        + "</ul></section>"
    )


def _glossary() -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _GLOSSARY.items())
    return (
        f'<section><details><summary>What the figures mean</summary><dl class="parts">{rows}</dl></details></section>'
    )
