"""Published image sets as the samples of one run: imported, given reasoning from measured cues, and put together."""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from emocaliber.runtime.errors import ConfigError, InputError
from emocaliber.runtime.samples import read_samples, write_samples

from .cot import CueWriter, build_reasoning
from .importers import IMPORTERS, ImportOptions, import_set
from .recipe import DataRecipe, SetRecipe


def gather_sets(data: DataRecipe, source: Path, folder: Path, seed: int) -> Path:
    """Returns ``folder/samples.jsonl`` with all sets of a recipe; what is there already is kept.

    Each set is imported with the recipe's splits and given reasoning by `CueWriter`, in a folder of its own; ids begin
    with the set's name.

    Args:
        data: Names of the sets, and their splits.
        source: The folder that holds them, one folder a set.
        folder: Where to write.
        seed: Of the splits.

    Raises:
        ConfigError: If a set is unknown, or none is named, or options are for a set that is not used.
        InputError: If a set is missing, or not as its authors publish it.
    """
    path = folder / "samples.jsonl"
    if path.is_file():
        return path
    unknown = [name for name in data.sets if name not in IMPORTERS]
    if unknown or not data.sets:
        raise ConfigError(f"data.sets is {list(data.sets)}, known: {', '.join(IMPORTERS)}")
    idle = [name for name in data.options if name not in data.sets]
    if idle:
        raise ConfigError(f"data.options names {', '.join(idle)}, which data.sets does not: {', '.join(data.sets)}")
    missing = [name for name in data.sets if not (source / name).is_dir()]
    if missing:
        raise InputError(f"{source} lacks {', '.join(missing)}; data.samples must name the folder of the sets")
    samples = []
    for name in data.sets:
        with tqdm(desc=name, unit="image", file=sys.stderr) as bar:

            def report(done: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            own = data.options.get(name, SetRecipe())
            options = ImportOptions(seed=seed, splits=own.splits or data.splits or None, taxonomies=own.taxonomies)
            imported = import_set(name, str(source / name), folder / name, options, report)
            built = build_reasoning(imported.samples, folder / f"{name}-reasoning", CueWriter(data.annotations), report)
        if built.samples is not None:
            samples += read_samples(built.samples)
    write_samples(samples, path)
    return path
