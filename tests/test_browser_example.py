"""The page of examples/browser in a headless browser, against the Python runtime."""

from __future__ import annotations

import io
import json
import os
import queue
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emocaliber.runtime import EmotionModel
from emocaliber.runtime.bundle import EMBEDDED_BUNDLE, Bundle
from emocaliber.runtime.images import decode_image

ROOT = Path(__file__).resolve().parents[1]
PAGE = "examples/browser"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
ANSWER_S = 240

pytestmark = pytest.mark.slow

PROBE = """
<!doctype html><meta charset="utf-8"><body><script type="module">
import { decodeImage, preprocess } from '/examples/browser/image.js';
const post = (answer) => fetch('/answer', { method: 'POST', body: JSON.stringify(answer) });
const until = async (test) => { while (!test()) await new Promise((go) => setTimeout(go, 50)); };
try {
  const task = await (await fetch('/given/task.json')).json();
  const frame = document.createElement('iframe');
  frame.src = `/examples/browser/index.html?${new URLSearchParams(task.query)}`;
  document.body.append(frame);
  await until(() => frame.contentDocument?.getElementById('status'));
  const page = (id) => frame.contentDocument.getElementById(id);
  const settled = () => page('status').matches('.error') || page('status').textContent.includes('sure');
  await until(settled);
  const answer = { status: page('status').textContent, distributions: {}, tile: null };
  if (!page('status').matches('.error')) {
    for (const { value } of page('taxonomy').options) {
      page('status').textContent = '';
      page('taxonomy').value = value;
      page('taxonomy').dispatchEvent(new Event('change'));
      await until(settled);
      answer.distributions[value] = JSON.parse(page('bars').dataset.distribution);
    }
    const blob = await (await fetch(task.query.image)).blob();
    answer.tile = Array.from(preprocess(await decodeImage(blob), task.preprocessing));
  }
  await post(answer);
} catch (error) {
  await post({ status: String(error), distributions: {}, tile: null });
}
</script>
"""


class _Handler(SimpleHTTPRequestHandler):
    """Serves the checkout, and under /given/ what the test wrote; takes the answer."""

    def __init__(self, *arguments: Any, given: Path, answers: queue.Queue[dict[str, Any]]) -> None:
        self.given, self.answers = given, answers
        super().__init__(*arguments, directory=str(ROOT))

    def translate_path(self, path: str) -> str:
        if path.startswith("/given/"):
            return str(self.given / path.removeprefix("/given/").partition("?")[0])
        return super().translate_path(path)

    def do_POST(self) -> None:
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(given: Path) -> Iterator[tuple[str, queue.Queue[dict[str, Any]]]]:
    """Yields the server's address and what the pages report."""
    answers: queue.Queue[dict[str, Any]] = queue.Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, given=given, answers=answers))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Returns what the page shows when it is opened with a query."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser found ({', '.join(BROWSERS)})")
    if not (ROOT / PAGE / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip(f"the page's modules are not installed; run: npm --prefix {PAGE} ci --ignore-scripts")

    def open_page(given: Path, **query: str) -> dict[str, Any]:
        preprocessing = json.loads((EMBEDDED_BUNDLE / "bundle.json").read_text())["preprocessing"]
        (given / "task.json").write_text(json.dumps({"query": query, "preprocessing": preprocessing}))
        (given / "probe.html").write_text(PROBE)
        command = [browser, "--headless", "--disable-gpu", "--remote-debugging-port=0"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        with serving(given) as (address, answers):
            quiet = subprocess.DEVNULL
            process = subprocess.Popen([*command, f"{address}/given/probe.html"], stdout=quiet, stderr=quiet)
            try:
                return answers.get(timeout=ANSWER_S)
            finally:
                process.terminate()
                process.wait()

    return open_page


def _turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95, exif=exif)
    return stream.getvalue()


def _transparent() -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (37, 150, 4), dtype=np.uint8)
    pixels[..., 3] = np.where(pixels[..., 3] < 128, 0, 255)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["photo", "turned", "transparent"])
def test_the_page_says_what_python_says(browse: Callable[..., dict[str, Any]], tmp_path: Path, kind: str) -> None:
    photo = ROOT / "docs" / "photo.jpg"
    content = {"photo": photo.read_bytes, "turned": lambda: _turned(Image.open(photo)), "transparent": _transparent}
    encoded = content[kind]()
    given = tmp_path / "given"
    given.mkdir()
    (given / "image").write_bytes(encoded)
    answer = browse(given, image="/given/image")
    with EmotionModel.load() as model:
        taxonomies = model.manifest.taxonomies
        assert list(answer["distributions"]) == list(taxonomies), answer["status"]
        for name in taxonomies:
            expected = model.predict(encoded, taxonomy=name).distribution
            assert answer["distributions"][name] == pytest.approx(expected, abs=1e-5), name
        tile = model.manifest.preprocessing.apply(decode_image(encoded)).ravel()
    # Browser and Pillow decode a JPEG alike up to rounding; from pixels on, every step is the same to the last bit.
    step = 2 / 255
    np.testing.assert_allclose(np.array(answer["tile"], np.float32), tile, atol=0 if kind == "transparent" else step)


def test_the_page_refuses_a_changed_bundle(browse: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    given = tmp_path / "given"
    shutil.copytree(EMBEDDED_BUNDLE, given / "bundle")
    with Bundle.open() as bundle:
        graph = given / "bundle" / bundle.manifest.precisions[bundle.manifest.default_precision].embed_tokens
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    answer = browse(given, bundle="/given/bundle", image="/docs/photo.jpg")
    assert answer["status"] == f"{graph.name} does not match its SHA-256; it was changed or damaged"
