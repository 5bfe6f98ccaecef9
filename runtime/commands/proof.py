"""``parity.json`` as a table for people: `bundle inspect` and `export verify` print it."""

from __future__ import annotations

from emocaliber.runtime.manifest import CALIBRATION_NAME, Manifest
from emocaliber.runtime.parity import Estimate, LabelledParity, ParityReport, PrecisionParity

_FIGURES = ("accuracy", "kl", "ece", "brier")


def proof_lines(parity: ParityReport | None, manifest: Manifest) -> list[str]:
    """Returns the lines that say how a bundle's graphs compare with the model they came from.

    Args:
        parity: What ``parity.json`` holds; None where the bundle has none.
        manifest: The bundle's manifest.
    """
    if parity is None:
        return ["proof: none (no parity.json); 'emocaliber export verify' writes it, from the model in torch"]
    return [
        *_heading(parity),
        *(f"  FORCED, beyond the accepted drift: {fault}" for fault in parity.forced),
        *_graph_rows(parity, manifest),
        *(f"  not run: {reason}" for reason in parity.absent.values()),
        *_labelled_rows(parity, manifest),
    ]


def _heading(parity: ParityReport) -> list[str]:
    sizes = ", ".join("×".join(map(str, size)) for size in parity.grids or parity.image_sizes)
    kind = " visual tokens" if parity.grids else " pixels"
    versions = ", ".join(f"{name} {found}" for name, found in parity.made_with.items()) or "versions not recorded"
    return [
        f"proof: graphs against the model in torch ({versions})",
        f"  {parity.images} images{f' of {sizes}{kind}' if sizes else ''}, preprocessed as on Pillow to "
        f"{parity.max_pixel_difference:.1g}; batches of {', '.join(map(str, parity.batch_sizes))} padded on the left, "
        f"{parity.decode_steps} decode steps",
    ]


def _graph_rows(parity: ParityReport, manifest: Manifest) -> list[str]:
    rows: list[tuple[str, ...]] = [("precision", "engine", "logits", "greedy", "tree", "neighbours", "scores", "KL")]
    for (precision, engine), run in parity.runs().items():
        shown = precision if precision in manifest.precisions else f"{precision} (not shipped)"
        rows.append((shown, engine, *_cells(run)))
    notes = "differences in nats, the largest of all, but for the means: scores (of label scores) and KL"
    return [*_table(rows), f"  ({notes})"]


def _cells(run: PrecisionParity) -> tuple[str, ...]:
    same = run.greedy_tokens - run.greedy_mismatches
    return (
        _number(run.max_logit_difference),
        f"{same}/{run.greedy_tokens}",
        _number(run.max_tree_difference),
        _number(run.max_neighbour_effect),
        _number(run.mean_score_drift),
        _number(run.kl_drift),
    )


def _labelled_rows(parity: ParityReport, manifest: Manifest) -> list[str]:
    lines = []
    for taxonomy, n, source in dict.fromkeys((row.taxonomy, row.n, row.source) for row in parity.labelled):
        lines.append(f"  {n} images of {taxonomy} ({source}), direct mode; in brackets graphs minus torch, 95 %:")
        rows: list[tuple[str, ...]] = [("precision", "engine", *_FIGURES, "KL from torch", "")]
        shown = None
        for row in parity.labelled:
            if (row.taxonomy, row.n, row.source) != (taxonomy, n, source):
                continue
            if row.torch != shown:  # another calibrator, which is on both sides
                rows.append(("float32", "torch", *(_fixed(getattr(row.torch, name)) for name in _FIGURES), "", ""))
                shown = row.torch
            rows.append((row.precision, row.engine, *_compared(row), _range(row.kl_drift), _status(row, manifest)))
        lines += _table(rows)
    return lines


def _compared(row: LabelledParity) -> list[str]:
    cells = []
    for name in _FIGURES:
        change = row.difference[name]
        cells.append(f"{_fixed(getattr(row.graphs, name))} [{_fixed(change.low, '+')}, {_fixed(change.high, '+')}]")
    return cells


def _status(row: LabelledParity, manifest: Manifest) -> str:
    if row.calibration is None:
        return "raw"
    current = manifest.files[CALIBRATION_NAME].sha256 == row.calibration
    return "calibrated" if current else "calibrated, by calibrators it no longer has"


def _range(value: Estimate) -> str:
    return f"{_number(value.estimate)} [{_number(value.low)}, {_number(value.high)}]"


def _fixed(value: float, sign: str = "") -> str:
    return f"{round(value, 3) + 0.0:{sign}.3f}"  # no -0.000


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(c.ljust(width) for c, width in zip(row, widths, strict=True)).rstrip() for row in rows]
