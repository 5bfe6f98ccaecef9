from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hub_server import HubServer, Repository, hub_server
from huggingface_hub import constants

from emocaliber.runtime import EmotionModel
from emocaliber.runtime.bundle import Bundle
from emocaliber.runtime.cli import main
from emocaliber.runtime.errors import ArtifactError, BackendError, DependencyError, InputError
from emocaliber.runtime.hub import HubAddress, hub_card, push

REPOSITORY = "someone/tiny"
GREY = np.full((20, 30, 3), 128, np.uint8)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The hub on this machine, with an empty cache and no token."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def held(hub: HubServer, tiny_bundle: Path) -> str:
    """The commit at which the hub holds the tiny bundle."""
    files = {path.name: path.read_bytes() for path in tiny_bundle.iterdir()}
    repository = hub.repositories[REPOSITORY] = Repository()
    return repository.commit({**files, "unlisted.bin": b"large"})


def test_addresses() -> None:
    assert HubAddress.parse("hf://a/b") == HubAddress(repository="a/b")
    assert HubAddress.parse("hf://a/b@v1.0") == HubAddress(repository="a/b", revision="v1.0")
    assert str(HubAddress.parse("hf://a/b@refs/pr/1")) == "hf://a/b@refs/pr/1"


@pytest.mark.parametrize(
    "text", ["hf://", "hf://a", "hf://a/b/c", "hf://a/b@", "hf://../b", "hf://a/b@..", "hf://a/ b"]
)
def test_an_address_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"no address of the form hf://owner/name\[@revision\]"):
        Bundle.open(text)


def test_a_bundle_is_fetched_at_one_commit_and_only_what_it_lists(hub: HubServer, held: str) -> None:
    with Bundle.open(f"hf://{REPOSITORY}") as bundle:
        assert bundle.source == f"hf://{REPOSITORY}@{held}"
        assert bundle.identity == {"name": "tiny-random", "version": "0.0.1", "source": bundle.source}
        fetched = {path.name for path in bundle.folder.iterdir()}
        assert fetched == {*bundle.manifest.files, "bundle.json"}
    assert [request for request in hub.requests if "resolve/main" in request and "bundle.json" not in request] == []


def test_predictions_are_those_of_the_folder_and_name_the_commit(held: str, tiny_bundle: Path) -> None:
    with EmotionModel.load(f"hf://{REPOSITORY}", engine="cpu") as remote, EmotionModel.load(tiny_bundle) as local:
        one, other = remote.predict(GREY), local.predict(GREY)
    assert one.distribution == other.distribution
    assert one.bundle["source"] == f"hf://{REPOSITORY}@{held}"
    assert "source" not in other.bundle


def test_a_commit_in_the_cache_is_opened_without_asking(hub: HubServer, held: str) -> None:
    Bundle.open(f"hf://{REPOSITORY}").close()
    hub.requests.clear()
    Bundle.open(f"hf://{REPOSITORY}@{held}").close()
    assert hub.requests == []


def test_what_is_cached_serves_without_a_network(hub: HubServer, held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Bundle.open(f"hf://{REPOSITORY}").close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    with Bundle.open(f"hf://{REPOSITORY}") as bundle:
        assert bundle.source == f"hf://{REPOSITORY}@{held}"
    assert hub.requests == []
    with pytest.raises(BackendError, match=r"hf://someone/other: bundle.json is not in this machine's cache"):
        Bundle.open("hf://someone/other")


def test_a_changed_file_is_refused(hub: HubServer, held: str) -> None:
    graph = "vision_encoder_int8.onnx"
    changed = hub.repositories[REPOSITORY].commits[held][graph][:-1] + b"!"
    hub.repositories[REPOSITORY].commit({graph: changed})
    with pytest.raises(ArtifactError, match=f"{graph} does not match its SHA-256"):
        Bundle.open(f"hf://{REPOSITORY}")
    Bundle.open(f"hf://{REPOSITORY}@{held}").close()


def test_what_the_hub_does_not_have_or_give(hub: HubServer, held: str) -> None:
    with pytest.raises(
        ArtifactError, match=r"hf://no/where: the hub knows no such repository; if it is private, log in"
    ):
        Bundle.open("hf://no/where")
    with pytest.raises(ArtifactError, match="has no revision 'v9'"):
        Bundle.open(f"hf://{REPOSITORY}@v9")
    hub.repositories["someone/shut"] = Repository(gated=True)
    with pytest.raises(ArtifactError, match=r"hf://someone/shut is gated: ask for access on its page"):
        Bundle.open("hf://someone/shut")
    hub.repositories["someone/else"] = Repository()
    hub.repositories["someone/else"].commit({"README.md": b"# Something else"})
    with pytest.raises(ArtifactError, match=r"hf://someone/else holds no bundle\.json"):
        Bundle.open("hf://someone/else")
    del hub.repositories[REPOSITORY].commits[held]["tokenizer.json"]
    with pytest.raises(ArtifactError, match=r"holds no tokenizer\.json, so it is no whole bundle"):
        Bundle.open(f"hf://{REPOSITORY}@{held}")


def test_the_library_is_asked_for_only_by_an_address(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    Bundle.open(tiny_bundle).close()
    with pytest.raises(DependencyError, match=r"pip install 'emocaliber\[hub\]'"):
        Bundle.open("hf://someone/tiny")


def test_pushing_needs_a_token(hub: HubServer, tiny_bundle: Path) -> None:
    with Bundle.open(tiny_bundle) as bundle, pytest.raises(ArtifactError, match="log in with `hf auth login`"):
        push(bundle, REPOSITORY)
    assert hub.repositories == {}


def test_a_wrong_repository_is_refused_before_anything_is_sent(hub: HubServer, tiny_bundle: Path) -> None:
    with Bundle.open(tiny_bundle) as bundle, pytest.raises(InputError, match="expected owner/name"):
        push(bundle, "tiny")
    assert hub.requests == []


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch, hub: HubServer, tiny_bundle: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with Bundle.open(tiny_bundle) as bundle, pytest.raises(BackendError, match="the hub cannot be reached"):
        push(bundle, REPOSITORY)


def test_the_page_begins_with_metadata_the_hub_reads(tiny_bundle: Path) -> None:
    with Bundle.open(tiny_bundle) as bundle:
        page = huggingface_hub.ModelCard(hub_card(bundle.manifest, "# tiny\n"))
    assert page.text.strip() == "# tiny"
    data = page.data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        bundle.manifest.license.lower(),
        "emocaliber",
        "image-classification",
    )
    assert {"onnx", "calibration", "idefics3"} <= set(data["tags"])
    own = huggingface_hub.ModelCard(hub_card(replace(bundle.manifest, license="LicenseRef-Research"), "# tiny\n"))
    assert (own.data.license, own.data.license_name) == ("other", "LicenseRef-Research")


def test_commands_push_and_read_back(hub: HubServer, tiny_bundle: Path, tmp_path: Path) -> None:
    """The whole way in processes of their own, with what a user has: an environment and a command."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": hub.token,
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "emocaliber.runtime.cli", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert hub.token not in done.stdout + done.stderr
        return done

    pushed = run("bundle", "push", str(tiny_bundle), REPOSITORY)
    assert pushed.returncode == 0, pushed.stderr
    repository = hub.repositories[REPOSITORY]
    [(commit, files)] = repository.commits.items()
    assert pushed.stdout == f"hf://{REPOSITORY}@{commit}\n"
    assert repository.private
    assert {name: content for name, content in files.items() if name != "README.md"} == {
        path.name: path.read_bytes() for path in tiny_bundle.iterdir()
    }
    assert huggingface_hub.ModelCard(files["README.md"].decode()).data.license == "apache-2.0"
    assert hub.objects, "graphs go as large files"

    seen = run("bundle", "verify", f"hf://{REPOSITORY}", "--json")
    assert json.loads(seen.stdout)["ok"] is True, seen.stderr
    environment["HF_HUB_OFFLINE"] = "1"
    inspected = run("bundle", "inspect", f"hf://{REPOSITORY}@main", "--json")
    assert json.loads(inspected.stdout)["source"] == f"hf://{REPOSITORY}@{commit}"


def test_an_error_is_a_message_and_a_status(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "photo.jpg", "--bundle", "hf://no/where"]) == 1
    assert "the hub knows no such repository" in capsys.readouterr().err
