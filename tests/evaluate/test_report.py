"""The report: complete, self-contained, escaped, and drawn from the numbers it was given."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from emocaliber.evaluate import (
    Comparison,
    CoverageRow,
    Example,
    Interval,
    ReportData,
    StageResult,
    reliability_curve,
    render_report,
)
from emocaliber.evaluate.charts import coverage_svg, interval_svg, reliability_svg
from emocaliber.runtime.errors import InputError

NASTY = '<script>alert("x")</script> & "quoted"'
VOID = {"meta", "img", "br", "line", "rect", "circle"}


def picture():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(stream, "PNG")
    return stream.getvalue()


def stage(name, brier, title=None):
    return StageResult(
        name=name,
        title=title or name,
        mode="direct",
        metrics={"accuracy": 0.5, "brier": brier, "ece": 0.123, "auroc": None, "n": 4.0},
        intervals={"brier": (brier - 0.01, brier + 0.01)},
        confidence=np.array([0.2, 0.55, 0.6, 0.95]),
        correct=np.array([0.0, 1.0, 0.0, 1.0]),
    )


def report(text="plain"):
    example = Example(
        image_png=picture(),
        labels=("joy", text),
        true=(0.4, 0.6),
        predicted=(0.75, 0.25),
        prediction_set=("joy", text),
        label="joy",
        confidence=0.75,
        reasoning={"element": text, "human": text},
        caption=text,
        answer=text,
    )
    return ReportData(
        title=text,
        subtitle=text,
        stages=(stage("verbalize", 0.31, text), stage("calibrate", 0.21)),
        examples=(example,),
        notes=(text,),
        facts={text: text},
        coverage=(CoverageRow(name=text, target=0.9, coverage=0.912, size=2.5, n=100),),
        comparisons=(Comparison(title=text, interval=Interval(estimate=-0.1, low=-0.12, high=-0.08, level=0.95)),),
    )


class Page(HTMLParser):
    """Collects tags and text, and checks that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_page_is_well_formed_and_shows_the_numbers():
    page = Page(render_report(report()))
    text = "\n".join(page.texts)
    for expected in ("0.310", "0.210", "0.123", "50.0%", "91.2%", "2.50", "-0.1000", "better", "75%"):
        assert expected in text


def test_page_loads_nothing():
    html = render_report(report())
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag in {"script", "link", "iframe", "object", "embed"}]
    sources = [value for _, attrs in page.tags for name, value in attrs.items() if name in {"src", "href"}]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_everything_from_data_is_escaped():
    html = render_report(report(NASTY))
    page = Page(html)
    assert "<script" not in html
    assert not [tag for tag, _ in page.tags if tag == "script"]
    # Title, heading, subtitle, facts, stage, figure, comparison, coverage, key, chip, bar, caption, note, reasoning.
    assert sum(NASTY in text for text in page.texts) >= 15


def test_images_and_drawings_have_text_alternatives():
    page = Page(render_report(report()))
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(drawings) == 4
    assert all(attrs.get("aria-label") and attrs.get("role") == "img" for attrs in drawings)


def test_the_best_of_a_column_is_marked_once():
    html = render_report(report())
    assert re.findall(r'<span class="best">([^<]+)</span>', html).count("0.210") == 1
    assert '<span class="best">0.310</span>' not in html


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "verdict"),
    [
        (-0.2, -0.1, True, "better"),
        (0.1, 0.2, True, "worse"),
        (-0.1, 0.1, True, "no clear"),
        (0.1, 0.2, False, "better"),
    ],
)
def test_verdict_of_a_comparison(low, high, lower_is_better, verdict):
    interval = Interval(estimate=(low + high) / 2, low=low, high=high, level=0.95)
    data = ReportData(
        title="t",
        subtitle="s",
        stages=(),
        comparisons=(Comparison(title="c", interval=interval, lower_is_better=lower_is_better),),
    )
    assert f": {verdict}" in render_report(data)


def test_empty_parts_are_left_out():
    html = render_report(ReportData(title="t", subtitle="s", stages=()))
    assert "Examples" not in html
    assert "<table" not in html
    Page(html)


def test_reliability_bars_stand_where_the_bins_are():
    # One bin of ten, (0.6, 0.7], accuracy 0.25: in a square of 246 from x = 40, y = 12.
    bins = reliability_curve(np.full(4, 0.65), [1, 0, 0, 0], n_bins=10)
    root = ElementTree.fromstring(reliability_svg(bins, "x", 0.4))  # noqa: S314
    [bar] = [e for e in root.iter() if e.get("class") == "bar"]
    assert float(bar.get("x")) == pytest.approx(40 + 0.6 * 246 + 1, abs=0.06)
    assert float(bar.get("y")) == pytest.approx(12 + 0.75 * 246, abs=0.06)
    assert float(bar.get("height")) == pytest.approx(0.25 * 246, abs=0.06)
    [gap] = [e for e in root.iter() if e.get("class") == "gap"]
    assert float(gap.get("height")) == pytest.approx(0.4 * 246, abs=0.06)


def test_an_answer_that_people_voted_on_is_as_right_as_their_share():
    labelled = stage("x", 0.2)
    voted = replace(labelled, metrics={**labelled.metrics, "ece_votes": 0.045}, by_votes=True)
    page = render_report(ReportData(title="t", subtitle="s", stages=(labelled, voted)))
    captions = re.findall(r'class="caption">([^<]*)<', page)
    assert captions == ["direct mode, ECE 0.123, 4 images", "direct mode, ECE 0.045 against the votes, 4 images"]
    assert [page.count(f">{name}</text>") for name in ("accuracy", "share of votes")] == [1, 1]
    # Against the labels only what stands folded, where all were voted on.
    of_votes = render_report(ReportData(title="t", subtitle="s", stages=(voted,)))
    table, _, more = of_votes.partition('<details class="more">')
    assert ">ECE, votes<" in table
    assert ">ECE<" not in table
    assert ">ECE<" in more
    assert ">ECE<" in page.partition('<details class="more">')[0]


def test_drawings_are_valid_xml():
    rows = (CoverageRow(name=NASTY, target=0.9, coverage=0.9, size=2.0, n=10),)
    ElementTree.fromstring(coverage_svg(rows))  # noqa: S314
    ElementTree.fromstring(interval_svg(Interval(estimate=0.0, low=0.0, high=0.0, level=0.9), NASTY))  # noqa: S314


def test_records_refuse_unequal_lengths():
    with pytest.raises(InputError, match="1 predicted probabilities for 2 labels"):
        Example(
            image_png=b"",
            labels=("a", "b"),
            true=None,
            predicted=(1.0,),
            prediction_set=("a",),
            label="a",
            confidence=1.0,
        )
    with pytest.raises(InputError, match="stage x"):
        StageResult(name="x", title="x", mode="direct", metrics={}, confidence=np.zeros(2), correct=np.zeros(3))
