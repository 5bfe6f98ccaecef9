"""The service as its clients see it, over real HTTP."""

from __future__ import annotations

import base64
import gc
import json
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from running_service import GatedModel, picture, service, until

from emocaliber.runtime import EmotionModel, Prediction
from emocaliber.runtime.serve.batching import Job
from emocaliber.runtime.serve.settings import Settings

# Copied from the published contract, not from the code.
LINE_KEYS = [
    "image", "taxonomy", "mode", "label", "confidence", "distribution", "prediction_set", "coverage",
    "verbalized_confidence", "reasoning", "calibrated", "bundle", "timing_ms",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[EmotionModel]:
    with EmotionModel.load(tiny_bundle, engine="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(model: EmotionModel) -> Iterator[httpx.Client]:
    with client_of(model, Settings()) as made:
        yield made


@contextmanager
def client_of(model: EmotionModel, settings: Settings) -> Iterator[httpx.Client]:
    with service(model, settings) as (address, _), httpx.Client(base_url=address, timeout=60) as made:
        yield made


def post(client: httpx.Client, image: bytes, path: str = "/v1/predict", **fields: str) -> httpx.Response:
    return client.post(path, files={"image": ("photo.png", image)}, data=fields)


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))


def test_form_gives_the_record_of_the_model(client: httpx.Client, model: EmotionModel) -> None:
    response = post(client, picture(1), mode="reason", coverage="0.8")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == LINE_KEYS
    served = Prediction.from_dict(response.json())
    own = model.predict(picture(1), mode="reason", coverage=0.8)
    for key in LINE_KEYS:
        if key not in ("timing_ms", "prediction_set"):
            assert getattr(served, key) == getattr(own, key)
    assert served.prediction_set() == own.prediction_set()
    assert set(served.timing_ms) == {*own.timing_ms, "queue"}
    parts = sum(ms for step, ms in served.timing_ms.items() if step != "total")
    assert served.timing_ms["total"] == pytest.approx(parts, abs=0.1)


def test_json_is_the_same_as_a_form(client: httpx.Client) -> None:
    by_form = post(client, picture(2), labels="calm, alarmed,bored").json()
    body = {"image": base64.b64encode(picture(2)).decode(), "labels": ["calm", "alarmed", "bored"]}
    by_json = client.post("/v1/predict", json=body).json()
    assert list(by_form["distribution"]) == ["calm", "alarmed", "bored"]
    assert by_form["taxonomy"] == "custom"
    assert by_form["calibrated"] is False
    assert by_json["distribution"] == by_form["distribution"]


def test_stream_tells_sections_before_the_end(client: httpx.Client, model: EmotionModel) -> None:
    response = post(client, picture(3), "/v1/stream", mode="reason")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/x-ndjson")
    events = [json.loads(line) for line in response.text.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "provisional"
    assert kinds[-1] == "final"
    assert set(kinds[1:-1]) <= {"section"}
    final = events[-1]
    own = model.predict(picture(3), mode="reason")
    assert list(final["prediction"]) == LINE_KEYS
    assert final["prediction"]["distribution"] == own.distribution
    assert final["calibrator"] == own.calibrator
    assert final["out_of_time"] is False
    assert [entry["coverage"] for entry in final["set_sizes"]][::49] == [0.5, 0.99]
    for entry in final["set_sizes"]:
        # The page takes the first so many of the ranked labels for the set.
        ranked = sorted(own.distribution, key=lambda label: -own.distribution[label])
        assert own.prediction_set(entry["coverage"]) == tuple(ranked[: entry["size"]])
    assert events[0]["prediction"]["distribution"] == model.predict(picture(3)).distribution


def test_stream_without_reasoning_is_one_event(client: httpx.Client) -> None:
    [line] = post(client, picture(3), "/v1/stream", mode="direct").text.splitlines()
    assert json.loads(line)["event"] == "final"


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/stream"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"taxonomy": "plutchik"}, "unknown taxonomy 'plutchik'"),
        ({"labels": "joy"}, "needs 2 to 1000 labels, got 1"),
        ({"labels": "joy,</answer>"}, "holds '<'"),
        ({"labels": "joy,fear", "taxonomy": "fi-2"}, "both given"),
        ({"mode": "dream"}, "mode is 'dream', expected one of 'direct'"),
        ({"coverage": "1"}, "coverage is 1.0"),
        ({"coverage": "most"}, "coverage is 'most'"),
        ({"coverage": "nan"}, "coverage is nan"),
        ({"url": "http://localhost/a.png"}, "unknown key url"),
    ],
)
def test_wrong_question_is_refused(client: httpx.Client, path: str, fields: dict[str, str], message: str) -> None:
    response = post(client, picture(4), path, **fields)
    assert response.status_code == 422
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/stream"])
@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (415, b"\x89PNG", "image/png", "expected multipart/form-data or application/json"),
        (400, b"{", "application/json", "not JSON"),
        (400, b'{"image": "", "image": ""}', "application/json", "twice"),
        (400, b"[" * 100_000, "application/json", "not JSON"),
        (400, b"\xff", "application/json", "not JSON"),
        (422, b"[1]", "application/json", "a JSON list"),
        (422, b"{}", "application/json", "no text 'image'"),
        (422, b'{"image": "https://example.org/a.png"}', "application/json", "not plain base64"),
        (422, b'{"image": "data:image/png;base64,AAAA"}', "application/json", "not plain base64"),
        (422, b'{"image": ""}', "application/json", "is empty"),
        (422, b'{"image": "AAAA"}', "application/json", "not an image"),
        (422, b'{"image": "AAAA", "labels": ["joy", "\\ud800"]}', "application/json", "control character"),
        (400, b"junk", "multipart/form-data", "boundary"),
        (400, b"junk", "multipart/form-data; boundary=x", "not a valid multipart form"),
        (422, b"--x--\r\n", "multipart/form-data; boundary=x", "no file 'image'"),
    ],
)
def test_wrong_body_is_refused(
    client: httpx.Client, path: str, status: int, body: bytes, kind: str, message: str
) -> None:
    response = client.post(path, content=body, headers={"content-type": kind})
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert message in response.json()["error"]["message"]
    assert metric(client, "emocaliber_places_taken") == 0


def test_field_given_twice_is_refused(client: httpx.Client) -> None:
    files = {"image": ("photo.png", picture(4))}
    response = client.post("/v1/predict", files=files, data={"image": "http://localhost/a.png"})
    assert response.status_code == 422
    assert "given twice" in response.json()["error"]["message"]


def test_sizes_are_limited(model: EmotionModel) -> None:
    with client_of(model, Settings(max_body_bytes=20_000, max_pixels=5_000)) as client:
        declared = post(client, b"x" * 20_000)
        chunked = client.post(
            "/v1/predict",
            content=(b" " * 1000 for _ in range(30)),
            headers={"content-type": "application/json"},
        )
        for response in (declared, chunked):
            assert response.status_code == 413
            assert "more than 20000 bytes" in response.json()["error"]["message"]
        pixels = post(client, picture(5, 100, 60))
        assert pixels.status_code == 422
        assert "100 x 60 is more than 5000 pixels" in pixels.json()["error"]["message"]
        assert post(client, picture(5)).status_code == 200


def test_slow_upload_ends_at_the_time_limit(model: EmotionModel) -> None:
    with client_of(model, Settings(time_limit_s=0.3, capacity=1)) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=60) as connection:
            head = "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
            connection.sendall(head.encode() + b"{")
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        assert metric(client, "emocaliber_places_taken") == 0


def test_slow_model_ends_at_the_time_limit_and_holds_its_place(model: EmotionModel) -> None:
    gated = GatedModel(model)
    with client_of(gated, Settings(time_limit_s=0.3, capacity=2)) as client:
        assert post(client, picture(6)).status_code == 504
        assert metric(client, "emocaliber_places_taken") == 1  # it is still computed
        assert post(client, picture(6)).status_code == 504
        assert metric(client, "emocaliber_places_taken") == 1  # this one was taken out of the queue
        assert metric(client, "emocaliber_queue_length") == 0
        gated.gate.set()
        until(lambda: metric(client, "emocaliber_places_taken") == 0)
        assert gated.batch_sizes == [1]


def test_full_service_sends_away_and_loses_nothing(model: EmotionModel) -> None:
    gated = GatedModel(model)
    with client_of(gated, Settings(capacity=3)) as client, ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(post, client, picture(seed)) for seed in range(3)]
        until(lambda: metric(client, "emocaliber_places_taken") == 3)
        for path in ("/v1/predict", "/v1/stream"):
            refused = post(client, picture(9), path)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "busy" in refused.json()["error"]["message"]
        assert client.get("/healthz").json() == {"status": "ok"}
        gated.gate.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 3
        assert post(client, picture(9)).status_code == 200


def test_what_waits_is_computed_together_and_fails_alone(model: EmotionModel) -> None:
    gated = GatedModel(model)
    with client_of(gated, Settings(max_batch=4)) as client, ThreadPoolExecutor(8) as threads:
        first = threads.submit(post, client, picture(0))
        assert gated.reached.acquire(timeout=60)
        alike = [threads.submit(post, client, picture(seed)) for seed in range(1, 6)]
        until(lambda: metric(client, "emocaliber_queue_length") == 5)
        other = threads.submit(post, client, picture(6), taxonomy="sentiment-2")
        until(lambda: metric(client, "emocaliber_queue_length") == 6)
        broken = threads.submit(post, client, b"no image")
        until(lambda: metric(client, "emocaliber_queue_length") == 7)
        gated.gate.set()
        assert first.result().status_code == 200
        for seed, answer in enumerate(alike, 1):
            assert answer.result().json()["distribution"] == model.predict(picture(seed)).distribution
        assert list(other.result().json()["distribution"]) == ["negative", "positive"]
        assert broken.result().status_code == 422
    # The oldest decides who goes with it: four of five, the fifth with the broken one, then the other question.
    assert sorted(gated.batch_sizes) == [1, 1, 1, 4]


def test_what_was_taken_on_is_finished_at_the_end(model: EmotionModel) -> None:
    gated = GatedModel(model)
    with (
        ThreadPoolExecutor(3) as threads,
        service(gated, Settings()) as (address, server),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        answers = [threads.submit(post, client, picture(seed)) for seed in range(3)]
        until(lambda: metric(client, "emocaliber_places_taken") == 3)
        server.should_exit = True
        until(lambda: not listens(address))
        gated.gate.set()
        assert [answer.result().status_code for answer in answers] == [200] * 3


def listens(address: str) -> bool:
    try:
        httpx.get(f"{address}/healthz")
    except httpx.TransportError:
        return False
    return True


def test_stream_whose_client_has_gone_gives_its_place_back(model: EmotionModel) -> None:
    gated = GatedModel(model)
    with client_of(gated, Settings(capacity=1)) as client:
        files = {"image": ("photo.png", picture(7))}
        with client.stream("POST", "/v1/stream", files=files, data={"mode": "reason"}) as response:
            assert response.status_code == 200
            assert '"provisional"' in next(response.iter_lines())
        gated.gate.set()
        until(lambda: metric(client, "emocaliber_places_taken") == 0)
        assert post(client, picture(7)).status_code == 200


def test_failing_model_is_an_answer_and_not_the_end(
    model: EmotionModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gated = GatedModel(model)
    gated.gate.set()
    with client_of(gated, Settings()) as client:
        with monkeypatch.context() as patch:
            patch.setattr(GatedModel, "_wait", lambda _: (_ for _ in ()).throw(MemoryError("no room")))
            response = post(client, picture(8))
            assert response.status_code == 500
            assert response.json()["error"]["type"] == "BackendError"
            assert "no room" not in response.text
            assert "no room" in caplog.text
            streamed = post(client, picture(8), "/v1/stream", mode="reason").text.splitlines()
            assert json.loads(streamed[-1])["event"] == "error"
        assert post(client, picture(8)).status_code == 200
        assert metric(client, "emocaliber_places_taken") == 0


def test_nothing_of_a_request_is_kept(model: EmotionModel) -> None:
    with client_of(model, Settings()) as client:
        for path in ("/v1/predict", "/v1/stream"):
            assert post(client, picture(8), path, mode="reason").status_code == 200
            assert post(client, b"no image", path).status_code == 422
        until(lambda: metric(client, "emocaliber_places_taken") == 0)
        # `isinstance` would wake the lazy modules of other libraries.
        until(lambda: gc.collect() >= 0 and not [kept for kept in gc.get_objects() if type(kept) is Job])


def test_uploads_do_not_touch_the_disk(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was made")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    large = picture(8, 1100, 1000)
    assert len(large) > 3_000_000
    assert post(client, large).status_code == 200


def test_other_sites_are_refused(client: httpx.Client) -> None:
    files = {"image": ("photo.png", picture(8))}
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert client.post("/v1/predict", files=files, headers={"Sec-Fetch-Site": site}).status_code == status


def test_model_says_what_can_be_asked(client: httpx.Client, model: EmotionModel) -> None:
    answer = client.get("/v1/model").json()
    assert answer["bundle"] == model.predict(picture(1)).bundle
    assert answer["default_taxonomy"] == "emotion6-7"
    sets = {entry["name"]: entry for entry in answer["taxonomies"]}
    assert sets["emotion6-7"]["calibrated_modes"] == ["direct", "reason"]
    assert sets["fi-2"] == {"name": "fi-2", "labels": ["negative", "positive"], "calibrated_modes": []}
    for name in sets:
        assert post(client, picture(1), taxonomy=name).status_code == 200


def test_metrics_count_answers_and_hold_no_text_of_callers(model: EmotionModel) -> None:
    with client_of(model, Settings()) as client:
        post(client, picture(1), labels="secretone,secrettwo")
        post(client, b"", labels="secretone,secrettwo")
        client.get("/secretpath")
        text = client.get("/metrics").text
    assert 'emocaliber_requests_total{endpoint="/v1/predict",status="200"} 1.0' in text
    assert 'emocaliber_requests_total{endpoint="/v1/predict",status="422"} 1.0' in text
    assert 'emocaliber_requests_total{endpoint="other",status="404"} 1.0' in text
    assert 'emocaliber_predictions_total{calibrated="false",mode="direct"} 1.0' in text
    assert "emocaliber_batch_size_count 2.0" in text
    assert "secret" not in text
