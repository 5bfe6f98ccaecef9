"""The page in a real browser: Chromium without a window, driven by keyboard and pointer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright
from running_service import ROOT, GatedModel, service

from emocaliber.runtime import EmotionModel
from emocaliber.runtime.serve.settings import Settings

PHOTO = ROOT / "docs" / "photo.jpg"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        try:
            # --no-sandbox: tests may run as root, and open no page but this one.
            made = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"no Chromium: {error.message.splitlines()[0]}")
        yield made
        made.close()


@pytest.fixture(scope="module")
def model() -> Iterator[EmotionModel]:
    with EmotionModel.load(engine="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def address(model: EmotionModel) -> Iterator[str]:
    with service(model, Settings()) as (address, _):
        yield address


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in ("light", "dark")], ids="-".join)
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """Opens the page in each size and colour scheme; it may report nothing, load nothing else, and not overflow."""
    size, scheme = request.param
    width, height = SIZES[size]
    opened = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda made: complaints.append(made.url) if not allowed(made.url, address) else None)
    # The browser hands over file choosers from now on; asked for beside the key that opens one, it would be too late.
    opened.on("filechooser", lambda _: None)
    opened.goto(address)
    expect(opened.get_by_label("Labels", exact=True)).to_be_enabled()
    yield opened
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
    opened.close()


def allowed(url: str, address: str) -> bool:
    return url.startswith((f"{address}/", f"blob:{address}/"))


def labels_in_set(page: Page) -> list[str]:
    return [row.get_attribute("data-label") or "" for row in page.locator("tr.inside").all()]


def test_photograph_is_read(page: Page, model: EmotionModel) -> None:
    page.get_by_label("Choose a photograph").set_input_files(PHOTO)
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
    own = model.predict(PHOTO, mode="reason")
    assert own.reasoning is not None
    expect(page.get_by_role("heading", level=2)).to_have_text(own.label)
    expect(page.locator("#confidence")).to_have_text(f"{100 * own.confidence:.1f} % sure")
    expect(page.locator("#status")).to_have_text(f"{own.label}, {100 * own.confidence:.1f} % sure")
    rows = page.locator("#bars tr")
    assert rows.count() == len(own.distribution)
    for row in rows.all():
        label = row.get_attribute("data-label")
        assert label is not None
        expect(row.locator(".share")).to_have_text(f"{100 * own.distribution[label]:.1f} %")
    assert page.locator("#sections dd").all_inner_texts() == list(own.reasoning.values())
    expect(page.locator("#stated")).to_contain_text(f"{own.verbalized_confidence:.2f}")
    expect(page.locator("#made-by")).to_contain_text("Calibrated for emotion6-7")
    assert labels_in_set(page) == list(own.prediction_set(0.9))


def test_slider_moves_the_set(page: Page, model: EmotionModel) -> None:
    page.get_by_label("none").check(force=True)
    page.get_by_label("Choose a photograph").set_input_files(PHOTO)
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
    own = model.predict(PHOTO)
    slider = page.get_by_label("Prediction set")
    slider.focus()
    for key, coverage in (("Home", 0.5), ("End", 0.99), ("ArrowLeft", 0.98)):
        slider.press(key)
        expect(page.locator("#coverage-value")).to_have_text(f"{100 * coverage:.0f} %")
        assert labels_in_set(page) == list(own.prediction_set(coverage))
        expect(page.locator("#set")).to_have_text(", ".join(own.prediction_set(coverage)))


def test_keyboard_alone_is_enough(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_label("Choose a photograph")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(PHOTO)
    expect(page.locator("#result")).to_be_visible()
    page.keyboard.press("Tab")
    taxonomy = page.get_by_label("Labels", exact=True)
    expect(taxonomy).to_be_focused()
    page.keyboard.type("your own")
    expect(page.locator("#own")).to_be_visible()
    page.keyboard.press("Tab")
    labels = page.get_by_label("Your own labels")
    expect(labels).to_be_focused()
    labels.fill("calm, tense")
    page.keyboard.press("Enter")
    expect(page.locator("#bars tr")).to_have_count(2)
    expect(page.locator("#notes")).to_contain_text("Not calibrated for these labels")
    expect(page.locator("#promise")).to_have_text("Without a calibrator the set promises nothing.")


def test_dropped_and_pasted_photographs_are_read(page: Page) -> None:
    content = list(PHOTO.read_bytes())
    for kind, holder in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """([bytes, kind, holder]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "photo.jpg", { type: "image/jpeg" }));
                const made = kind === "drop" ? new DragEvent(kind, { [holder]: data, cancelable: true })
                                             : new ClipboardEvent(kind, { [holder]: data });
                document.dispatchEvent(made);
            }""",
            [content, kind, holder],
        )
        expect(page.locator("#answer")).to_have_attribute("aria-busy", "true")
        expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
        expect(page.locator("#result")).to_be_visible()


def test_wrong_file_and_wrong_labels_are_said(browser: Browser, address: str, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(address)
    expect(page.get_by_label("Labels", exact=True)).to_be_enabled()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    page.get_by_label("Choose a photograph").set_input_files(broken)
    expect(page.get_by_role("alert")).to_contain_text("not an image of a supported format")
    page.get_by_role("button", name="Predict").click()
    expect(page.get_by_role("alert")).to_contain_text("not an image")
    page.locator("#file").set_input_files(PHOTO)
    expect(page.locator("#result")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()
    page.get_by_label("Labels", exact=True).select_option("your own labels")
    page.get_by_label("Your own labels").fill("joy, <b>joy</b>")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("labels are words, never tags")
    page.close()


def test_reasoning_is_shown_while_it_is_written(browser: Browser, model: EmotionModel) -> None:
    gated = GatedModel(model)
    with service(gated, Settings()) as (address, _):
        page = browser.new_page()
        page.goto(address)
        expect(page.get_by_label("Labels", exact=True)).to_be_enabled()
        page.locator("#file").set_input_files(PHOTO)
        expect(page.locator("#status")).to_have_text(re.compile(r"first impression: \w+; now reasoning"))
        expect(page.locator("#bars tr")).to_have_count(7)
        expect(page.locator("#sections dd")).to_have_count(0)
        expect(page.locator("#answer")).to_have_attribute("aria-busy", "true")
        gated.gate.set()
        expect(page.locator("#sections dd")).to_have_count(5)
        expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
        page.close()
