"""What ``batch`` has done so far, on disk, so that after a kill it goes on where it stopped.

``FILE.partial`` holds a line with the settings of the run and the number of images in finished files, then the result
lines of the file in the making. A finished file is written in one step from these lines, and only then are they
dropped; a kill in between makes the next run write the same file again.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from emocaliber.runtime.errors import ArtifactError, InputError
from emocaliber.runtime.files import atomic_write
from emocaliber.runtime.journal import refuse_other

from .tables import write_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which images stand in which output file."""

    out: Path
    """What the user named."""
    images: int
    """How many there are; positive."""
    shard_size: int | None
    """Images of a file; None puts all into one."""
    chunk: int
    """Images that are predicted together."""

    @property
    def partial(self) -> Path:
        """The file of what is not finished."""
        return self.out.with_name(self.out.name + ".partial")

    @property
    def file_count(self) -> int:
        """How many output files there are."""
        return 1 if self.shard_size is None else -(-self.images // self.shard_size)

    def path(self, number: int) -> Path:
        """Returns the output file of a number: ``out`` itself, or a shard ``STEM-00000-of-00003.SUFFIX``."""
        if self.shard_size is None:
            return self.out
        return self.out.with_name(f"{self.out.stem}-{number:05d}-of-{self.file_count:05d}{self.out.suffix}")

    def file_of(self, image: int) -> tuple[Path, range]:
        """Returns the file in which an image stands, and all images of it."""
        size = self.shard_size or self.images
        number = image // size
        return self.path(number), range(number * size, min((number + 1) * size, self.images))

    def chunks(self, done: int) -> Iterator[range]:
        """Yields the images of each chunk that is not done; none reaches beyond its file."""
        while done < self.images:
            _, span = self.file_of(done)
            yield from (span[start : start + self.chunk] for start in range(done - span.start, len(span), self.chunk))
            done = span.stop

    def is_complete(self) -> bool:
        """Returns whether every file is there and nothing is unfinished."""
        return not self.partial.exists() and all(self.path(number).exists() for number in range(self.file_count))

    def refuse_existing(self) -> None:
        """Refuses to overwrite any output.

        Raises:
            InputError: If there is any output already.
        """
        stem = glob.escape(self.out.stem)
        old = [self.out] if self.shard_size is None else self.out.parent.glob(f"{stem}-?????-of-?????{self.out.suffix}")
        for path in sorted(old):
            if path.exists():
                raise InputError(f"{path} exists; delete it or choose another --out")


class Collection:
    """The results of one run, in the order of the images."""

    def __init__(self, plan: Plan, images: Sequence[str], settings: Mapping[str, Any]) -> None:
        """Takes up what an interrupted run left, or begins; no file is written before the first result.

        Args:
            plan: Which images stand where.
            images: Their names.
            settings: All that the results depend on, as plain values.

        Raises:
            ConfigError: If the interrupted run had other settings.
            ArtifactError: If what it left is damaged.
            OSError: If that cannot be read, or the file it completes cannot be written.
        """
        self._plan, self._images, self._settings = plan, images, settings
        self._finished = self._finished_failed = 0
        self._stream: BinaryIO | None = None
        self.done = 0
        """Images whose results are safe."""
        self.failed = 0
        """Those among them that could not be read."""
        if plan.partial.exists():
            self._take_up()

    def add(self, lines: Sequence[str], failed: int) -> None:
        """Adds the lines of the next chunk, of which some are errors; finishes the file that it completes.

        Raises:
            OSError: If they cannot be written.
        """
        if self._stream is None:
            self._begin()
        assert self._stream is not None
        self._stream.write("".join(f"{line}\n" for line in lines).encode("ascii"))
        self._stream.flush()
        self.done += len(lines)
        self.failed += failed
        self._finish_file()

    def close(self) -> bool:
        """Closes the files; returns whether an interrupted run is left that can be continued."""
        if self._stream is not None:
            self._stream.close()
        return self._plan.partial.exists()

    def _begin(self) -> None:
        """Starts the lines of the next file."""
        head = {"settings": self._settings, "done": self._finished, "failed": self._finished_failed}
        atomic_write(self._plan.partial, json.dumps(head) + "\n")
        self._stream = self._plan.partial.open("ab")

    def _finish_file(self) -> None:
        """Writes the file in the making if all its lines are there."""
        path, span = self._plan.file_of(self._finished)
        if self.done < span.stop:
            return
        assert self._stream is not None
        self._stream.close()
        self._stream = None
        with self._plan.partial.open("rb") as lines:
            lines.readline()
            write_table(lines, path)
        self._finished, self._finished_failed = self.done, self.failed
        if self.done == self._plan.images:
            self._plan.partial.unlink()
        else:
            self._begin()

    def _take_up(self) -> None:
        """Reads an interrupted run; of a torn chunk nothing is kept, because its images are predicted together."""
        partial = self._plan.partial
        with partial.open("rb") as stream:
            head = self._head(stream.readline())
            self._finished, self._finished_failed = head["done"], head["failed"]
            path, span = self._plan.file_of(self._finished)
            self.done, self.failed = self._finished, self._finished_failed
            kept, errors = stream.tell(), 0
            for number, image in enumerate(span, 2):
                line = stream.readline()
                if not line.endswith(b"\n"):
                    break
                errors += self._is_error(line, self._images[image], f"{partial}, line {number}")
                if (number - 1) % self._plan.chunk == 0 or image + 1 == span.stop:
                    kept, self.done, self.failed = stream.tell(), image + 1, self._finished_failed + errors
        for torn in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            torn.unlink()
        self._stream = partial.open("r+b")
        self._stream.truncate(kept)
        self._stream.seek(kept)
        self._finish_file()

    def _head(self, line: bytes) -> dict[str, Any]:
        try:
            head = dict(json.loads(line))
            stored = dict(head["settings"])
            found = {key: int(head[key]) for key in ("done", "failed")}
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(
                f"{self._plan.partial}, line 1 is damaged ({error!r}); delete the file to start over"
            ) from error
        refuse_other(self._plan.partial, stored, self._settings)
        if not 0 <= found["failed"] <= found["done"] < self._plan.images:
            raise ArtifactError(f"{self._plan.partial}, line 1 is damaged ({found}); delete the file to start over")
        return found

    @staticmethod
    def _is_error(line: bytes, image: str, where: str) -> bool:
        try:
            content = dict(json.loads(line))
            found = content["image"]
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{where} is damaged ({error!r}); delete the file to start over") from error
        if found != image:
            raise ArtifactError(f"{where} is of {found!r}, not of {image!r}; delete the file to start over")
        return "error" in content
