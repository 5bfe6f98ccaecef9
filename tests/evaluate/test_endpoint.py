"""`EndpointResponder` against a real HTTP server that behaves well and badly."""

import email.utils
import time

import numpy as np
import pytest
from chat_server import Reply, chat_server, image_of, text_of
from PIL import Image

from emocaliber.evaluate.endpoint import Endpoint, EndpointResponder, default_api_key
from emocaliber.evaluate.responders import Drawing, Request
from emocaliber.runtime.errors import BackendError, ConfigError, InputError


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.full((60, 120, 3), (200, 30, 40), np.uint8)).save(path)
    return path


def responder(server, **options):
    settings = {"retries": 2, "backoff_s": 0.01, "timeout_s": 5.0, **options}
    return EndpointResponder(Endpoint(url=server.url, model="tester", **settings))


def ask(picture, *, count=3):
    return [Request(image=picture, instruction=f"question {number}") for number in range(count)]


def one(server, picture, drawing=None, **options):
    return responder(server, **options).respond(ask(picture, count=1), drawing or Drawing())


def test_questions_are_sent_as_asked_and_answers_come_back_in_order(picture):
    def script(body, number):
        return Reply(texts=(text_of(body).upper(),), wait_s=0.05 if text_of(body).endswith("0") else 0.0)

    with chat_server(script) as server:
        drawing = Drawing(temperature=0.5, max_new_tokens=77, seed=3)
        answers = responder(server, max_edge=40, concurrency=2).respond(ask(picture, count=6), drawing)
    assert answers == [[f"QUESTION {number}"] for number in range(6)]
    assert server.most_at_once == 2
    assert set(server.paths) == {"/v1/chat/completions"}
    assert {"Authorization", "Cookie"}.isdisjoint(server.headers[0])
    body = server.bodies[0]
    assert {key: body[key] for key in ("model", "temperature", "max_tokens", "seed", "n")} == {
        "model": "tester", "temperature": 0.5, "max_tokens": 77, "seed": 3, "n": 1,
    }  # fmt: skip
    sent = image_of(body)
    assert sent.size == (40, 20)
    assert np.asarray(sent).reshape(-1, 3).mean(axis=0) == pytest.approx([200, 30, 40], abs=3)


def test_turns_and_their_order(picture):
    request = Request(image=picture, instruction="why?", system="You look.", image_first=True)
    with chat_server(lambda body, number: Reply(texts=("so",))) as server:
        responder(server, api_key="sesame").respond([request], Drawing())
    turns = server.bodies[0]["messages"]
    assert turns[0] == {"role": "system", "content": "You look."}
    assert [part["type"] for part in turns[1]["content"]] == ["image_url", "text"]
    assert server.headers[0]["Authorization"] == "Bearer sesame"


def test_several_choices_are_asked_for_until_they_are_there(picture):
    # The first server gives as many as asked, the second one at a time, each with a seed of its own.
    drawing = Drawing(count=3, temperature=1.0, seed=10)
    with chat_server(lambda body, number: Reply(texts=tuple("abc"[: body["n"]]))) as server:
        assert one(server, picture, drawing) == [["a", "b", "c"]]
        assert len(server.bodies) == 1
    with chat_server(lambda body, number: Reply(texts=(f"seed {body['seed']}",))) as server:
        assert one(server, picture, drawing) == [["seed 10", "seed 11", "seed 12"]]


def test_a_choice_without_text_is_empty(picture):
    body = b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}'
    with chat_server(lambda *_: Reply(body=body)) as server:
        assert one(server, picture) == [[""]]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_passing_failures_are_asked_again(picture, status):
    def script(body, number):
        return Reply(status=status, body=b"busy") if number < 2 else Reply(texts=("ready",))

    with chat_server(script) as server:
        assert one(server, picture) == [["ready"]]
    assert len(server.bodies) == 3


@pytest.mark.parametrize("dated", [False, True])
def test_the_wait_the_server_asks_for_is_kept(picture, dated):
    def script(body, number):
        after = email.utils.formatdate(time.time() + 2, usegmt=True) if dated else "1"
        return Reply(status=429, headers={"Retry-After": after}) if number == 0 else Reply(texts=("ready",))

    with chat_server(script) as server:
        assert one(server, picture) == [["ready"]]
    # A date has whole seconds only, so that up to one of the two is lost.
    assert server.at[1] - server.at[0] >= (0.9 if dated else 1.0)


def test_no_wait_is_longer_than_allowed(picture):
    def script(body, number):
        return Reply(status=503, headers={"Retry-After": "3600"}) if number == 0 else Reply(texts=("ready",))

    with chat_server(script) as server:
        assert one(server, picture, max_wait_s=0.05) == [["ready"]]


def test_a_broken_connection_and_a_silent_server_are_asked_again(picture):
    def script(body, number):
        return (Reply(texts=("torn",), cut=True), Reply(texts=("late",), wait_s=0.6), Reply(texts=("ready",)))[number]

    with chat_server(script) as server:
        assert one(server, picture, timeout_s=0.25) == [["ready"]]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(status=500, body=b"out of memory"), "failed 3 times, at last with: HTTP 500 .*out of memory.*; see"),
        (Reply(texts=("late",), wait_s=0.4), "failed 3 times, at last with: no answer within 0.15 s; .*longer timeout"),
        (Reply(status=401, body=b"who?"), r"HTTP 401 .*\(who\?\); the key is missing or wrong; name the environment"),
        (Reply(status=404), "HTTP 404 .*; check the URL, which usually ends in /v1, and the name of the model"),
        (Reply(body=b"<html>hello</html>"), "no chat completion .*<html>hello.*; check that the URL is the base"),
        (Reply(body=b'{"choices": []}'), "no chat completion"),
        (Reply(body=b'{"choices": [{"message": {"content": [1]}}]}'), "no chat completion"),
        (Reply(body=b'{"error": "no model"}'), "no chat completion .*KeyError.*no model"),
        (Reply(body=b"[" * 100_000), "no chat completion"),
    ],
)  # fmt: skip
def test_lasting_failures_say_what_to_do(picture, reply, message):
    with chat_server(lambda *_: reply) as server, pytest.raises(BackendError, match=message):
        one(server, picture, timeout_s=0.15 if reply.wait_s else 5.0)


def test_nobody_there(picture):
    with chat_server(lambda *_: Reply()) as server:
        pass
    with pytest.raises(BackendError, match="failed 3 times, at last with: ConnectionRefusedError"):
        one(server, picture)


def test_no_redirect_is_followed(picture):
    with chat_server(lambda *_: Reply(texts=("stolen",))) as other:
        script = lambda *_: Reply(status=307, headers={"Location": other.url})  # noqa: E731
        with chat_server(script) as server, pytest.raises(BackendError, match=r"redirects to http.*give the final URL"):
            one(server, picture, api_key="sesame")
    assert other.bodies == []


def test_a_refused_request_names_its_image(picture):
    with (
        chat_server(lambda *_: Reply(status=400, body=b"image too rude")) as server,
        pytest.raises(InputError, match=r"refuses the request about image .*wide.png: HTTP 400 .*\(image too rude\)"),
    ):
        one(server, picture)
    assert len(server.bodies) == 1


def test_the_first_failure_ends_the_others(picture):
    def script(body, number):
        return Reply(status=403) if text_of(body).endswith("1") else Reply(status=503)

    started = time.monotonic()
    with chat_server(script) as server, pytest.raises(BackendError, match="the key may not use this model"):
        responder(server, concurrency=2, retries=50, backoff_s=5.0).respond(ask(picture, count=20), Drawing())
    assert time.monotonic() - started < 4
    assert len(server.bodies) < 6


def test_an_unreadable_image_is_not_sent(tmp_path):
    with chat_server(lambda *_: Reply(texts=("seen",))) as server, pytest.raises(InputError, match="cannot read image"):
        one(server, tmp_path / "absent.png")
    assert server.bodies == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://host/v1"}, "expected a URL such as"),
        ({"url": "file:///etc/passwd"}, "expected a URL such as"),
        ({"url": "localhost:8000/v1"}, "expected a URL such as"),
        ({"url": "http://"}, "expected a URL such as"),
        ({"url": "http://me:secret@host/v1"}, "holds a user, a password"),
        ({"url": "http://host/v1?key=secret"}, "a query"),
        ({"model": " "}, "needs the name of a model"),
        ({"api_key": "two\nlines"}, "look for a line break"),
        ({"concurrency": 0}, "concurrency of the endpoint is 0, expected at least 1"),
        ({"timeout_s": 0.0}, "timeout_s of the endpoint"),
        ({"timeout_s": float("nan")}, "timeout_s of the endpoint"),
        ({"jpeg_quality": 100}, "jpeg_quality is 100"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        Endpoint(**{"url": "http://host/v1", "model": "tester", **options})


def test_the_key_is_in_no_printout():
    assert "sesame" not in repr(Endpoint(url="https://host/v1", model="tester", api_key="sesame"))


@pytest.mark.parametrize(
    ("url", "sent"),
    [("https://a.example/v1", True), ("http://localhost:8000/v1", True), ("http://[::1]:1/v1", True),
     ("http://a.example/v1", False), ("http://192.168.0.7:8000/v1", False)],
)  # fmt: skip
def test_the_default_key_never_goes_unencrypted_to_another_machine(
    monkeypatch: pytest.MonkeyPatch, url: str, sent: bool
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert default_api_key(url) == ("secret" if sent else None)
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    assert default_api_key(url) is None
