"""Bundles on the Hugging Face hub: ``hf://owner/name[@revision]`` is read from it, `push` writes to it.

Nothing is fetched unless an ``hf://`` address was written. Needs the extra ``hub``, whose library keeps the files in
its own cache (``HF_HOME``), takes the token of ``hf auth login`` or ``HF_TOKEN``, and works without a network on what
is already there (``HF_HUB_OFFLINE=1`` never asks).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from .bundle import Bundle, read_manifest
from .errors import ArtifactError, BackendError, DependencyError, InputError
from .manifest import MANIFEST_NAME, MODEL_CARD_NAME, Manifest, parse_manifest

HUB_SCHEME = "hf://"
HUB_CARD_NAME = "README.md"
"""The file the hub shows as a repository's page."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_LICENSE = re.compile(
    r"apache-2\.0|mit|isc|zlib|unlicense|mpl-2\.0|bsd-[23]-clause|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-4\.0", re.IGNORECASE
)
"""SPDX expressions that, in lower case, are names of licences on the hub; all others are ``other`` with their name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """A repository of the hub, at a revision."""

    repository: str
    """``owner/name``."""
    revision: str | None = None
    """Branch, tag or commit; None is the repository's main branch."""

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repository):
            raise InputError(f"hub repository is {self.repository!r}, expected owner/name")
        if self.revision is not None and not _REVISION.fullmatch(self.revision):
            raise InputError(f"hub revision is {self.revision!r}, expected a branch, a tag or a commit")

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Returns the address written as ``hf://owner/name[@revision]``.

        Raises:
            InputError: If it is written in another way.
        """
        repository, at, revision = text.removeprefix(HUB_SCHEME).partition("@")
        try:
            return cls(repository=repository, revision=revision if at else None)
        except InputError as error:
            raise InputError(f"{text!r} is no address of the form hf://owner/name[@revision]: {error}") from error

    def __str__(self) -> str:
        return f"{HUB_SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The files of one bundle as the hub's cache holds them: links to files that are kept by content."""

    folder: Path
    """Where they stand."""
    address: HubAddress
    """Where they came from; its revision is the commit."""


def fetch(text: str) -> Snapshot:
    """Returns the bundle at an ``hf://`` address on this machine; what is not in the hub's cache is downloaded.

    A branch or tag is resolved to a commit once, all files are of that commit, and only files that the bundle lists
    are fetched. Where the hub cannot be reached, the commit that was last seen is used if it is in the cache.

    Args:
        text: ``hf://owner/name[@revision]``.

    Raises:
        InputError: If the address is written wrongly.
        DependencyError: If the hub's library is not installed.
        ArtifactError: If there is no such repository, revision or bundle, or it is not open to the caller.
        BackendError: If the hub cannot be reached, and the bundle is not in the cache.
    """
    asked = HubAddress.parse(text)
    folder = _download(asked, MANIFEST_NAME).parent
    address = HubAddress(repository=asked.repository, revision=folder.name)
    for name in parse_manifest(read_manifest(folder, links=True), f"{address}: {MANIFEST_NAME}").files:
        _download(address, name)
    return Snapshot(folder=folder, address=address)


def push(bundle: Bundle, repository: str, *, public: bool = False) -> HubAddress:
    """Returns the address, commit included, at which the bundle's files now stand.

    They go to the main branch in one commit, with the model card as the repository's page. A repository that does not
    exist is made.

    Args:
        bundle: An opened bundle.
        repository: ``owner/name``.
        public: Whether a repository that has to be made is open to everybody; one that exists stays as it is.

    Raises:
        InputError: If the repository's name is wrong.
        DependencyError: If the hub's library is not installed.
        ArtifactError: If the caller may not write there.
        BackendError: If the hub cannot be reached, or refuses.
    """
    target = HubAddress(repository=repository)
    hub = _library()
    page = hub_card(bundle.manifest, bundle.path(MODEL_CARD_NAME).read_text(encoding="utf-8"))
    contents: dict[str, bytes | Path] = {HUB_CARD_NAME: page.encode(), MANIFEST_NAME: bundle.folder / MANIFEST_NAME}
    contents |= {name: bundle.path(name) for name in bundle.manifest.files}
    operations = [
        hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()
    ]
    api = hub.HfApi(library_name="emocaliber", library_version=version("emocaliber"))
    with _translated(hub, target):
        api.create_repo(repository, private=not public, exist_ok=True)
        commit = api.create_commit(
            repository, operations, commit_message=f"{bundle.manifest.name} {bundle.manifest.version}"
        )
    return HubAddress(repository=repository, revision=commit.oid)


def hub_card(manifest: Manifest, card: str) -> str:
    """Returns the model card with the metadata in front by which the hub files and finds it.

    Args:
        manifest: The bundle's manifest.
        card: Its ``MODEL_CARD.md``.

    Raises:
        DependencyError: If the hub's library is not installed.
    """
    known = _LICENSE.fullmatch(manifest.license) is not None
    metadata = _library().ModelCardData(
        license=manifest.license.lower() if known else "other",
        license_name=None if known else manifest.license,
        library_name="emocaliber",
        pipeline_tag="image-classification",
        tags=["emotion-recognition", "calibration", "onnx", manifest.family],
        model_name=f"{manifest.name} {manifest.version}",
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{card}"


def _download(address: HubAddress, name: str) -> Path:
    """Returns where one file of a repository stands in the hub's cache."""
    hub = _library()
    with _translated(hub, address, name):
        return Path(
            hub.hf_hub_download(
                address.repository,
                name,
                revision=address.revision,
                library_name="emocaliber",
                library_version=version("emocaliber"),
            )
        )


def _library() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"the hub needs {error.name}, which is not installed; run: pip install 'emocaliber[hub]'"
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def _translated(hub: ModuleType, address: HubAddress, name: str = "") -> Iterator[None]:
    """Turns the library's errors into ours. Of a refused request only status and the hub's own words are repeated.

    Its address may be signed, and that is nobody's business.
    """
    errors = hub.errors
    try:
        yield
    except errors.GatedRepoError as error:
        raise ArtifactError(f"{address} is gated: ask for access on its page, then {_LOGIN}") from error
    except errors.RepositoryNotFoundError as error:
        raise ArtifactError(f"{address}: the hub knows no such repository; if it is private, {_LOGIN}") from error
    except errors.RevisionNotFoundError as error:
        raise ArtifactError(f"{address}: the repository has no revision {address.revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise BackendError(
            f"{address}: {name} is not in this machine's cache, and the hub cannot be reached or is not to be asked "
            "(HF_HUB_OFFLINE); download it once with a network, or give a folder"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ArtifactError(f"{address} holds no {name}, so it is no whole bundle") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        said = f" ({error.server_message})" if error.server_message else ""
        if status in (401, 403):
            raise ArtifactError(f"{address}: the hub does not let you{said}; {_LOGIN} to a token that may") from error
        raise BackendError(f"{address}: the hub answered with status {status}{said}") from error
    except Exception as error:  # what its HTTP library raises differs between versions
        reason = (str(error).splitlines() or [""])[0][:200]
        raise BackendError(f"{address}: the hub cannot be reached: {type(error).__name__}: {reason}") from error
