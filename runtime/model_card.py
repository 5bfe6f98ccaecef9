"""The model card of a bundle, written from what the bundle records and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .calibration import Calibrator
from .manifest import Manifest
from .parity import ParityReport

_WHAT = """It reads the emotion an image is likely to **evoke in people who look at it**, as a probability for each
label of a list. It does not read what a person in the image feels, thinks or intends.

An image evokes different emotions in different people and cultures. The probabilities describe how the annotators of
the training data answered, and no one else."""

_MISUSE = """- to judge, rank, select or monitor individual people, or to infer their state of mind
- in hiring, education, credit, insurance, policing, border control or the courts
- for medical or psychological assessment
- for surveillance of any kind, or to target people by how vulnerable an image makes them
- as the only ground of a decision that matters to somebody"""

CARD_KEYS = ("summary", "training_data", "metrics", "limits")
"""Keys of a manifest's provenance that the card gives a section of their own; the rest is listed as it is."""


def model_card(manifest: Manifest, calibrators: Sequence[Calibrator], parity: ParityReport | None = None) -> str:
    """Returns the card as Markdown.

    From the manifest's provenance it takes ``summary`` (text), ``training_data`` (text or list of texts), ``metrics``
    (``{row: {measure: number or null}}``, where ``[estimate, low, high]`` may stand for a number) and ``limits`` (list
    of texts); what is not recorded is said not to be.

    Args:
        manifest: The bundle's manifest.
        calibrators: What ``calibration.json`` holds.
        parity: What ``parity.json`` holds, where the graphs were checked.
    """
    facts = manifest.provenance
    sections = [
        ("", str(facts.get("summary", "No summary was recorded."))),
        ("What it reads", _WHAT),
        ("What it must not be used for", _MISUSE),
        ("Licence", f"Weights: {manifest.license}."),
        ("Training data", _list(facts.get("training_data"))),
        ("Results", _metrics(facts.get("metrics"))),
        ("Labels", _taxonomies(manifest)),
        ("Calibration", _calibration(manifest, calibrators)),
        ("Exported graphs", _parity(manifest, parity)),
        ("Limits", _list(facts.get("limits"))),
        ("Provenance", _provenance(facts)),
    ]
    parts = [f"# {manifest.name} {manifest.version}"]
    for title, text in sections:
        parts.append(f"## {title}\n\n{text}" if title else text)
    return "\n\n".join(parts) + "\n"


def _list(entry: object) -> str:
    if not entry:
        return "Not recorded."
    if isinstance(entry, (list, tuple)):
        return "\n".join(f"- {item}" for item in entry)
    return str(entry)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: object) -> str:
    if value is None:
        return "undefined"
    if isinstance(value, (list, tuple)):
        estimate, low, high = map(_number, value)
        return f"{estimate} ({low} to {high})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _metrics(entry: object) -> str:
    if not isinstance(entry, Mapping) or not entry:
        return "Not recorded."
    measures = list(dict.fromkeys(measure for row in entry.values() for measure in row))
    rows = [
        [str(name), *(_number(row[measure]) if measure in row else "" for measure in measures)]
        for name, row in entry.items()
    ]
    return _table(["", *map(str, measures)], rows)


def _taxonomies(manifest: Manifest) -> str:
    rows = [
        [name + (" (default)" if name == manifest.default_taxonomy else ""), ", ".join(labels)]
        for name, labels in manifest.taxonomies.items()
    ]
    return _table(["taxonomy", "labels"], rows) + "\n\nAny other list of labels is answered too, uncalibrated."


def _calibration(manifest: Manifest, calibrators: Sequence[Calibrator]) -> str:
    if not calibrators:
        return "None: the probabilities of this bundle are raw, and every prediction says so."
    rows = [
        [
            calibrator.taxonomy,
            calibrator.mode,
            calibrator.precision,
            calibrator.engine,
            calibrator.method,
            "none" if calibrator.confidence is None else calibrator.confidence.kind,
            str(calibrator.n),
            f"{calibrator.log_loss:.3f}",
            calibrator.conformal.method,
            ", ".join(f"{coverage:g}" for coverage in calibrator.conformal.coverages),
            "none" if calibrator.drift is None else f"{calibrator.drift.images} images",
            calibrator.fitted_on,
        ]
        for calibrator in calibrators
    ]
    header = ["taxonomy", "mode", "precision", "engine", "method", "confidence map", "n", "log loss", "sets"]
    header += ["set coverages", "drift reference", "fitted on"]
    bare = [name for name in manifest.taxonomies if name not in {calibrator.taxonomy for calibrator in calibrators}]
    note = f"\n\nWithout a calibrator: {', '.join(bare)}." if bare else ""
    return _table(header, rows) + "\n\nLog loss in nats, cross-validated." + note


def _parity(manifest: Manifest, parity: ParityReport | None) -> str:
    precisions = ", ".join(f"{p} (default)" if p == manifest.default_precision else p for p in manifest.precisions)
    text = f"Precisions: {precisions}."
    if parity is None:
        return f"{text} They were not compared with the model they came from."
    rows = [
        [
            name,
            engine,
            *map(_number, (run.max_logit_difference, run.mean_score_drift, run.max_score_drift)),
            "not measured" if run.kl_drift is None else _number(run.kl_drift),
        ]
        for (name, engine), run in parity.runs().items()
    ]
    header = ["precision", "engine", "largest logit difference", "mean label score drift", "largest label score drift"]
    table = _table([*header, "divergence of probabilities"], rows)
    forced = "".join(f"\n\n**Beyond the accepted drift, and forced:** {fault}." for fault in parity.forced)
    return f"{text} Against the model they came from (differences in nats):\n\n{table}{forced}"


def _provenance(facts: Mapping[str, Any]) -> str:
    rows = [[key, _flat(value)] for key, value in facts.items() if key not in CARD_KEYS]
    return _table(["", ""], rows) if rows else "Not recorded."


def _flat(value: object) -> str:
    if isinstance(value, Mapping):
        if any(isinstance(entry, Mapping) for entry in value.values()):
            return "recorded in full in `bundle.json`"
        return "; ".join(f"{key}: {_flat(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_flat(entry) for entry in value)
    return _number(value)
