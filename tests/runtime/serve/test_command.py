"""``emocaliber serve`` as a process, its page's files, and its settings."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import httpx2 as httpx
import pytest
from running_service import ROOT, command, picture

import emocaliber.runtime.serve
from emocaliber.runtime import ConfigError
from emocaliber.runtime.cli import main
from emocaliber.runtime.serve.server import is_loopback
from emocaliber.runtime.serve.settings import Settings

PAGE = Path(emocaliber.runtime.serve.__file__).parent / "page"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_serves_until_asked_to_end(tiny_bundle: Path) -> None:
    with command("--bundle", str(tiny_bundle)) as (address, process):
        assert address.startswith("http://127.0.0.1:")
        answer = httpx.post(f"{address}/v1/predict", files={"image": ("photo.png", picture(1))}, timeout=60)
        assert answer.status_code == 200
        page = httpx.get(address)
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css"), ("icon.svg", "image/svg+xml")):
            served = httpx.get(f"{address}/{name}")
            assert served.headers["content-type"].partition(";")[0] == kind
            assert served.content == (PAGE / name).read_bytes()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_port_that_is_taken_is_one_message(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status = main(["serve", "--bundle", str(tiny_bundle), "--threads", "1", "--port", str(port)])
    assert status == 1
    errors = capsys.readouterr().err
    assert errors.startswith(f"emocaliber: error: cannot listen on 127.0.0.1 port {port}: ")
    assert errors.count("\n") == 1


def test_missing_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['starlette'] = None\n"
        "from emocaliber.runtime.cli import main; sys.exit(main(['serve']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".dev")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'emocaliber serve' needs starlette" in done.stderr
    assert "pip install 'emocaliber[serve]'" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--capacity", "0"], "capacity is 0, expected a positive integer"),
        (["--max-body-bytes", "-1"], "max_body_bytes is -1"),
        (["--time-limit", "inf"], "time_limit_s is inf, expected a positive number of seconds"),
    ],
)
def test_limits_that_make_no_sense(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 1
    assert message in capsys.readouterr().err


def test_settings_check_every_limit() -> None:
    for name in ("max_pixels", "max_batch"):
        with pytest.raises(ConfigError, match=f"{name} is 0"):
            Settings(**{name: 0})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "board"])  # noqa: S104
def test_other_addresses_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


class Page(HTMLParser):
    """Collects what a page refers to, and which fields have a label."""

    def __init__(self) -> None:
        super().__init__()
        self.references: set[str] = set()
        self.fields: set[str] = set()
        self.labels: set[str] = set()
        self.ids: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: text or "" for name, text in attrs}
        self.references |= {found[name] for name in ("src", "href") if name in found}
        self.inline += [name for name in found if name == "style" or name.startswith("on")]
        self.ids += [found["id"]] if "id" in found else []
        if tag in ("input", "select") and found.get("type") != "radio":
            self.fields.add(found["id"])
        if tag == "label" and "for" in found:
            self.labels.add(found["for"])


def test_page_needs_nothing_from_elsewhere_and_names_its_fields() -> None:
    page = Page()
    page.feed((PAGE / "index.html").read_text(encoding="utf-8"))
    assert page.references == {"app.js", "style.css", "icon.svg"}
    assert page.inline == []
    assert page.fields == {"file", "taxonomy", "labels", "coverage"} == page.labels & page.fields
    assert len(page.ids) == len(set(page.ids))
    script = (PAGE / "app.js").read_text(encoding="utf-8")
    assert set(re.findall(r'\bat\("([\w-]+)"\)', script)) <= set(page.ids)
    for name in ("app.js", "style.css"):
        text = (PAGE / name).read_text(encoding="utf-8")
        assert re.findall(r"https?://|//\w+\.|@import|innerHTML|eval\(", text) == []
