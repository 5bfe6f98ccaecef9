"""``emocaliber data``: import sample sets, give them reasoning, and check them before a training run does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from emocaliber.runtime.cli import EXIT_ERROR, EXIT_OK
from emocaliber.train.importers import IMPORTERS, Imported, ImportOptions, import_set
from emocaliber.train.importers.audit import Audit, audit_samples
from emocaliber.train.importers.sheet import write_sheet

from . import cot

SHOWN = 10
"""Messages of one kind that a report lists; the rest are counted."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``data`` to its parser."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    sets = "; ".join(f"{name}: {importer.help} (SRC: {importer.source})" for name, importer in IMPORTERS.items())
    action = actions.add_parser("import", help="write a set as samples.jsonl and images", description=f"Sets: {sets}.")
    action.add_argument("name", metavar="NAME", choices=sorted(IMPORTERS), help=", ".join(sorted(IMPORTERS)))
    action.add_argument("source", metavar="SRC", help="where the set is, or what its line above says")
    action.add_argument("folder", metavar="OUT", type=Path, help="folder to write to")
    action.add_argument("--seed", type=int, default=0, help="for whatever is drawn by chance (default 0)")
    action.add_argument("--size", type=int, help="side in pixels, where the set draws its own pictures")
    action.add_argument("--splits", type=_splits, metavar="NAME=SHARE,...", help="train=0.7,calibration=0.15,test=0.15")
    action.add_argument("--taxonomy", action="append", help="label set to write lines for; may be given several times")
    action.add_argument(
        "--images", type=Path, action="append", default=[], metavar="DIR",
        help="folder that image paths are relative to; may be given several times",
    )  # fmt: skip
    action.add_argument("--copy", action="store_true", help="copy the images into OUT instead of naming them in place")
    action.add_argument("--strict", action="store_true", help="an image that is listed but absent is an error")
    action.add_argument(
        "--keep-duplicates", action="store_true", help="keep pictures that the set itself has in several splits"
    )
    action.add_argument("--raters", choices=("all", "us", "chinese"), help="whose ratings count (bass)")
    action.add_argument("--sheet", type=Path, metavar="FILE.png", help="also write a contact sheet of the first images")
    about = "give samples five-part reasoning, from measured cues or from a model"
    cot.configure(actions.add_parser("build-cot", help=about, description=f"{about[0].upper()}{about[1:]}."))
    action = actions.add_parser("check", help="read every line and every image of a samples file")
    action.add_argument("samples", metavar="FILE", type=Path, help="samples in JSON Lines")


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0, or 1 if ``check`` found faults."""
    if arguments.action == "build-cot":
        return cot.run(arguments, _progress)
    return _import(arguments) if arguments.action == "import" else _check(arguments)


def _splits(text: str) -> dict[str, float]:
    """Returns ``train=0.7,test=0.3`` as a table."""
    splits: dict[str, float] = {}
    for part in text.split(","):
        name, equals, share = part.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        if not equals or not name.strip() or name.strip() in splits or not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{part!r}: write NAME=SHARE,... with each name once and shares above 0")
        splits[name.strip()] = value
    return splits


@contextmanager
def _progress(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yields ``report(done, total)``, shown as a bar on standard error where that is a terminal."""
    with tqdm(desc=title, unit=unit, file=sys.stderr, disable=None) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def _import(arguments: argparse.Namespace) -> int:
    options = ImportOptions(
        seed=arguments.seed,
        size=arguments.size,
        splits=arguments.splits,
        taxonomies=None if arguments.taxonomy is None else tuple(arguments.taxonomy),
        images=tuple(folder.absolute() for folder in arguments.images),
        copy=arguments.copy,
        strict=arguments.strict,
        keep_duplicates=arguments.keep_duplicates,
        raters=arguments.raters,
    )
    with _progress(arguments.name, "image") as report:
        imported = import_set(arguments.name, arguments.source, arguments.folder, options, report)
    if arguments.sheet is not None:
        write_sheet(imported.samples, arguments.sheet)
    sys.stderr.write("\n".join(_summary(arguments.name, imported)) + "\n")
    sys.stdout.write(f"{imported.samples}\n")
    return EXIT_OK


def _summary(name: str, imported: Imported) -> list[str]:
    """Returns the lines that say what was imported, what was left out, and under which terms."""
    lines = [f"{name}:"]
    lines += [f"  {count} {what}" for what, count in imported.counts.items() if count]
    lines += [f"  note: {note}" for note in imported.notes]
    return [*lines, f"  terms: {IMPORTERS[name].terms}"]


def _check(arguments: argparse.Namespace) -> int:
    with _progress("check", "line") as report:
        audit = audit_samples(arguments.samples, report)
    sys.stdout.write("\n".join(_report(arguments.samples, audit)) + "\n")
    return EXIT_ERROR if audit.faults else EXIT_OK


def _report(path: Path, audit: Audit) -> list[str]:
    """Returns the lines of the report: sizes, class balance, what is odd, what is wrong."""
    lines = [f"{path}: {audit.samples} samples, {audit.images} readable images"]
    for (taxonomy, split), group in sorted(audit.groups.items(), key=lambda item: (item[0][0], item[0][1] or "")):
        balance = "  ".join(
            f"{label} {mass / (group.samples - group.unlabelled):.1%}" for label, mass in group.mass.items()
        )
        lines.append(f"  {taxonomy}, {split or 'no split'}: {group.samples} samples")
        if balance:
            lines.append(f"    {balance}")
        if group.unlabelled:
            lines.append(f"    {group.unlabelled} without votes or answer")
    if audit.repeats:
        lines.append(f"note: {audit.repeats} images repeat another of their split")
    for title, messages in (
        ("invalid lines", audit.invalid),
        ("unreadable images", audit.unreadable),
        ("pictures in more than one split", audit.leaks),
    ):
        if messages:
            lines.append(f"{title}: {len(messages)}")
            lines += [f"  {message}" for message in messages[:SHOWN]]
            if len(messages) > SHOWN:
                lines.append(f"  ... and {len(messages) - SHOWN} more")
    lines.append(f"{audit.faults} faults" if audit.faults else "no faults")
    return lines
