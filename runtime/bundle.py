"""Opening bundles: a folder or ``.tar`` with a manifest, graphs, tokenizer and calibrators, all checked by hash."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import TracebackType

from .archive import unpack
from .calibration import Calibrator, read_calibrators
from .errors import ArtifactError, InputError
from .files import sha256_of
from .grammar import Mode
from .graph_check import graph_faults, graph_headers
from .manifest import (
    BUNDLE_SCHEMA,
    CALIBRATION_NAME,
    MANIFEST_NAME,
    MODEL_CARD_NAME,
    TOKENIZER_NAME,
    DecoderShape,
    FileRecord,
    GraphFiles,
    ImageBlock,
    Manifest,
    Prompts,
    parse_manifest,
)

__all__ = [
    "ALL_PRECISIONS",
    "BUNDLE_SCHEMA",
    "Bundle",
    "CALIBRATION_NAME",
    "DecoderShape",
    "EMBEDDED_BUNDLE",
    "FileRecord",
    "GraphFiles",
    "ImageBlock",
    "MANIFEST_NAME",
    "MODEL_CARD_NAME",
    "Manifest",
    "Prompts",
    "TOKENIZER_NAME",
    "parse_manifest",
    "read_manifest",
]

EMBEDDED_BUNDLE = Path(__file__).parent / "bundles" / "default"
"""Where the bundle that ships in the package stands."""

ALL_PRECISIONS = "*"
"""In place of the name of one."""

MAX_MANIFEST_BYTES = 4 << 20


class Bundle:
    """One opened bundle. Close it, or use it as a context manager, to remove what a ``.tar`` was unpacked to."""

    def __init__(
        self, folder: Path, manifest: Manifest, calibrators: tuple[Calibrator, ...], *, source: str | None = None
    ) -> None:
        self.folder = folder
        self.source = source
        """The ``hf://`` address it was fetched from, commit included; None for one of this machine."""
        self.manifest = manifest
        self.calibrators = calibrators
        self._unread: dict[str, frozenset[str]] = {}
        """Weights beside each graph that were not compared with their hashes yet."""
        self._cleanup: weakref.finalize[..., Bundle] | None = None

    @classmethod
    def open(
        cls, path: str | Path | None = None, *, verify: bool = True, precision: str | None = ALL_PRECISIONS
    ) -> Bundle:
        """Returns the bundle in a folder or a ``.tar``, or the embedded one for None.

        Args:
            path: Where it is; ``hf://owner/name[@revision]`` fetches it (see `hub.fetch`; needs the extra ``hub``).
            verify: Whether to compare the SHA-256 of every file, which reads them once; sizes are always compared.
            precision: Compare, and look into, only the files that a model of this precision reads (None: the bundle's
                default one), so that what is never read costs no time; weights beside graphs are left to
                `check_weights`.

        Raises:
            InputError: If the path is of a kind that is not supported, or the bundle has no such precision.
            ArtifactError: If the bundle is missing, corrupt, or of another schema version; every fault is named.
            BackendError: If it has to be fetched, and the hub cannot be reached.
        """
        if isinstance(path, str) and path.startswith("hf://"):
            from .hub import fetch  # an extra, and only on demand

            snapshot = fetch(path)
            return cls._open_folder(snapshot.folder, verify=verify, precision=precision, source=str(snapshot.address))
        if path is None and not (EMBEDDED_BUNDLE / MANIFEST_NAME).is_file():
            raise ArtifactError("this installation has no embedded bundle; give the path of one")
        if isinstance(path, str) and "://" in path:
            raise InputError(f"bundle {path!r} is an address; a folder, a .tar file or hf://owner/name is supported")
        place = EMBEDDED_BUNDLE if path is None else Path(path)
        try:
            is_folder, exists = place.is_dir(), place.exists()
        except OSError as error:
            raise ArtifactError(f"bundle {str(place)[:200]} cannot be opened: {error.strerror}") from error
        if is_folder:
            return cls._open_folder(place, verify=verify, precision=precision)
        if not exists:
            raise ArtifactError(f"bundle {place} does not exist")
        if place.suffix != ".tar":
            raise ArtifactError(f"bundle {place} is neither a folder nor a .tar file")
        return cls._open_archive(place, verify=verify, precision=precision)

    @classmethod
    def _open_archive(cls, archive: Path, *, verify: bool, precision: str | None) -> Bundle:
        try:
            folder = Path(tempfile.mkdtemp(prefix="emocaliber-bundle-"))
        except OSError as error:
            raise ArtifactError(
                f"cannot unpack {archive}: no place for temporary files ({error.strerror}); set TMPDIR, "
                "or give a bundle that is a folder"
            ) from error
        try:
            unpack(archive, folder)
            entries = list(folder.iterdir())
            inner = entries[0] if len(entries) == 1 and entries[0].is_dir() else folder
            bundle = cls._open_folder(inner, verify=verify, precision=precision)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        bundle._cleanup = weakref.finalize(bundle, shutil.rmtree, folder, ignore_errors=True)
        return bundle

    @classmethod
    def _open_folder(cls, folder: Path, *, verify: bool, precision: str | None, source: str | None = None) -> Bundle:
        links = source is not None  # those of the hub's cache, which its library made
        manifest = parse_manifest(read_manifest(folder, links=links), f"{folder / MANIFEST_NAME}")
        whole = precision == ALL_PRECISIONS
        asked = list(manifest.precisions) if whole else [manifest.precision(precision)]
        graphs = {name for each in asked for name in manifest.precisions[each].names()}
        read = set(manifest.files) if whole else {TOKENIZER_NAME, CALIBRATION_NAME, *graphs}
        faults = [
            fault
            for name, record in manifest.files.items()
            if (fault := _place_fault(folder, name, record, links=links))
        ]
        if verify:
            faults = faults or _content_faults(folder, manifest, read)
        # Only graphs that stand there whole are looked into, and only what they name inside the bundle is read.
        if not faults:
            headers = graph_headers(folder, graphs)
            faults = list(graph_faults(manifest, asked, headers))
        if faults:
            raise ArtifactError(f"bundle {folder}: " + "; ".join(faults))
        calibrators = read_calibrators(folder / CALIBRATION_NAME)
        for calibrator in calibrators:
            _check_calibrator(calibrator, manifest)
        bundle = cls(folder, manifest, calibrators, source=source)
        if verify:
            beside = {name: frozenset(header.external) - read for name, header in headers.items()}
            bundle._unread = {name: weights for name, weights in beside.items() if weights}
        return bundle

    def check_weights(self, graphs: Iterable[str]) -> None:
        """Compares the weights beside these graphs with their SHA-256, unless that was done before.

        To be called before they are read: a bundle that was opened for one precision has left it to its reader.

        Raises:
            ArtifactError: If any do not match; every fault is named.
        """
        weights = {weight for graph in graphs for weight in self._unread.get(graph, ())}
        faults = _content_faults(self.folder, self.manifest, weights)
        if faults:
            raise ArtifactError(f"bundle {self.folder}: " + "; ".join(faults))
        self._unread = {graph: left for graph, names in self._unread.items() if (left := names - weights)}

    def path(self, name: str) -> Path:
        """Returns where a listed file stands.

        Raises:
            ArtifactError: If the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise ArtifactError(f"bundle {self.manifest.name} lists no file {name!r}")
        return self.folder.joinpath(*PurePosixPath(name).parts)

    @property
    def identity(self) -> dict[str, str]:
        """Name and version, and where it was fetched from if it was."""
        named = {"name": self.manifest.name, "version": self.manifest.version}
        return named if self.source is None else {**named, "source": self.source}

    def calibrator(self, taxonomy: str, mode: Mode, precision: str) -> Calibrator | None:
        """Returns the calibrator fitted for exactly this taxonomy, mode and precision, or None."""
        for calibrator in self.calibrators:
            if (calibrator.taxonomy, calibrator.mode, calibrator.precision) == (taxonomy, mode, precision):
                return calibrator
        return None

    @property
    def is_unpacked(self) -> bool:
        """Whether it is a ``.tar``, unpacked to a folder that goes when it is closed."""
        return self._cleanup is not None

    def close(self) -> None:
        """Removes the files a ``.tar`` was unpacked to; a folder stays as it is."""
        if self._cleanup is not None:
            self._cleanup()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def named_bundle(name: str) -> str | None:
    """Returns what `Bundle.open` is given for a name on a command line: None, the embedded bundle, for ``default``."""
    return None if name == "default" else name


def read_manifest(folder: Path, *, links: bool = False) -> str:
    """Returns the text of a folder's ``bundle.json``.

    Args:
        folder: The bundle's folder.
        links: Whether it may be a symbolic link.

    Raises:
        ArtifactError: If it cannot be read, is a link, or is larger than any manifest.
    """
    path = folder / MANIFEST_NAME
    if path.is_symlink() and not links:
        raise ArtifactError(f"{path} is a symbolic link; a bundle holds plain files")
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"{folder} is no bundle: cannot read {MANIFEST_NAME}: {error.strerror}") from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 text: {error}") from error


def _place_fault(folder: Path, name: str, record: FileRecord, *, links: bool) -> str | None:
    """Returns what is wrong with a listed file before its content is looked at, or None."""
    parts = PurePosixPath(name).parts
    if not links and any(folder.joinpath(*parts[: depth + 1]).is_symlink() for depth in range(len(parts))):
        return f"{name} is a symbolic link; a bundle holds plain files"
    path = folder.joinpath(*parts)
    if not path.is_file():
        return f"{name} is missing"
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    if size_bytes != record.size_bytes:
        return f"{name} has {size_bytes} bytes, expected {record.size_bytes}"
    return None


def _content_faults(folder: Path, manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Returns which of these files do not match their SHA-256; files are read side by side."""

    def fault(name: str) -> str | None:
        try:
            if sha256_of(folder.joinpath(*PurePosixPath(name).parts)) != manifest.files[name].sha256:
                return f"{name} does not match its SHA-256; it was changed or damaged"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        return None

    with ThreadPoolExecutor() as pool:
        return [found for found in pool.map(fault, sorted(names)) if found]


def _check_calibrator(calibrator: Calibrator, manifest: Manifest) -> None:
    where = f"{CALIBRATION_NAME}: calibrator for {calibrator.taxonomy} ({calibrator.mode}, {calibrator.precision})"
    if manifest.taxonomies.get(calibrator.taxonomy) != calibrator.labels:
        raise ArtifactError(f"{where}: its labels are not those of the bundle's taxonomy of that name")
    if calibrator.precision not in manifest.precisions:
        raise ArtifactError(f"{where}: the bundle has no such precision ({', '.join(manifest.precisions)})")
