"""Subgoals from a list and from a stand-in for a language model."""

import base64
import io
import json
import logging
import re
import socket

import numpy as np
import pytest
from PIL import Image

from sfvgen_planner.errors import SfvgenError
from sfvgen_planner.planning import (
    ChatEndpoint,
    LanguageModelConfig,
    LanguageModelSubgoals,
    ListedSubgoals,
)
from tests.planning.chat_server import ChatServer, completion

KEY = "sk-very-secret"
INSTRUCTIONS = ["left", "right", "up", "down"]
GOOD = completion('["right", "down"]')


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def split(answers, goal="go to the corner", frame=None, is_allowed=None, endpoint=None, **config):
    """What the stand-in's answers are made of, and the requests that it got."""
    with ChatServer(answers) as server:
        chat = ChatEndpoint(server.base_url, "stand-in", **(endpoint or {}))
        config = LanguageModelConfig(**config)
        subgoals = LanguageModelSubgoals(chat, INSTRUCTIONS, is_allowed, config)
        try:
            return subgoals(goal, frame), server.requests
        except SfvgenError as error:
            return str(error), server.requests


def test_a_task_s_own_list():
    subgoals = ListedSubgoals({"corner": ("right", "down"), "back": ["up"]})
    assert subgoals("corner") == ["right", "down"]
    subgoals("corner").clear()
    assert subgoals("corner") == ["right", "down"]
    with pytest.raises(SfvgenError, match=r"no list of subgoals for 'home'.*\['back', 'corner'\]"):
        subgoals("home")


@pytest.mark.parametrize("bad", [[], ["left", ""], "left"])
def test_a_list_without_instructions_is_refused(bad):
    with pytest.raises(SfvgenError, match="the subgoals of 'corner' must be a list"):
        ListedSubgoals({"corner": bad})


def test_the_request_is_a_chat_completion_that_tells_what_the_robot_understands():
    subgoals, requests = split([GOOD])
    assert subgoals == ["right", "down"]
    [(path, headers, body)] = requests
    assert path == "/v1/chat/completions"
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert body["model"] == "stand-in"
    assert body["temperature"] == 0
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert all(f"- {instruction}" in system["content"] for instruction in INSTRUCTIONS)
    assert "1 to 8 strings" in system["content"]
    assert user["content"] == "Goal: go to the corner"


def test_the_temperature_can_be_left_to_the_endpoint():
    _, [(_, _, body)] = split([GOOD], endpoint={"temperature": None})
    assert body.keys() == {"model", "messages"}


def test_a_model_that_sees_is_shown_the_present_frame():
    frame = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    _, [(_, _, body)] = split([GOOD], frame=frame)
    assert isinstance(body["messages"][1]["content"], str)
    _, [(_, _, body)] = split([GOOD], frame=frame, show_frame=True)
    text, picture = body["messages"][1]["content"]
    assert text == {"type": "text", "text": "Goal: go to the corner"}
    kind, data = picture["image_url"]["url"].split(",")
    assert (picture["type"], kind) == ("image_url", "data:image/png;base64")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert np.array_equal(np.asarray(image), frame)


@pytest.mark.parametrize(
    "answer", ['```json\n["right", "down"]\n```', '```\n["right","down"]```', ' ["right ", "down"]']
)
def test_fences_and_blanks_around_the_list_do_not_matter(answer):
    assert split([completion(answer)])[0] == ["right", "down"]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("first right, then down", "the answer is not JSON alone"),
        ('Sure: ["right"]', "the answer is not JSON alone"),
        ("[" * 100_000, "the answer is not JSON alone"),
        ('{"subgoals": ["right"]}', "the answer is not a JSON list of strings"),
        ('["right", 1]', "the answer is not a JSON list of strings"),
        ("[]", "the list has 0 instructions, not 1 to 3"),
        ('["up", "up", "up", "up"]', "the list has 4 instructions, not 1 to 3"),
        ('["right", " "]', "an instruction is empty"),
        ('["right", "jump"]', 'the robot does not understand ["jump"]'),
    ],
)
def test_an_unusable_answer_is_told_to_the_model_which_answers_again(answer, complaint):
    subgoals, requests = split([completion(answer), GOOD], max_subgoals=3)
    assert subgoals == ["right", "down"]
    first, second = (body["messages"] for _, _, body in requests)
    assert second[:2] == first
    said, told = second[2:]
    assert said == {"role": "assistant", "content": answer}
    assert told["role"] == "user"
    assert complaint in told["content"]


def test_after_the_retries_the_last_complaint_is_the_error():
    answers = [completion(answer) for answer in ("no", "[]", '["jump"]')]
    error, requests = split(answers, num_retries=2)
    assert len(requests) == 3
    assert re.search(r"stand-in gave no usable subgoals .* in 3 answers.*understand .*jump", error)
    error, requests = split(answers, num_retries=0)
    assert len(requests) == 1
    assert "in 1 answers, at last because the answer is not JSON alone" in error


def test_a_predicate_allows_what_fits_a_pattern():
    is_allowed = re.compile("go (left|right) twice").fullmatch
    answers = [completion('["left"]'), completion('["go left twice"]')]
    assert split(answers, is_allowed=is_allowed)[0] == ["go left twice"]


def test_the_key_is_sent_and_nowhere_told(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("STAND_IN_KEY", f"{KEY}\n")
    with_key = {"api_key_variable": "STAND_IN_KEY"}
    requests = split([completion("no"), GOOD], endpoint=with_key)[1]
    assert [headers["Authorization"] for _, headers, _ in requests] == [f"Bearer {KEY}"] * 2
    refused, _ = split([(401, f"wrong key {KEY}")], endpoint=with_key)
    assert "HTTP 401 (wrong key [API key])" in refused
    malformed, _ = split([(200, f"your key is {KEY}")], endpoint=with_key)
    assert "no chat completion (your key is [API key])" in malformed
    assert "stand-in" in caplog.text
    assert KEY not in caplog.text + repr(ChatEndpoint("http://localhost/v1", "m", "STAND_IN_KEY"))


def test_a_redirection_does_not_carry_the_key_away(monkeypatch):
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    with ChatServer([(200, "hello")]) as elsewhere:
        error, _ = split([(302, elsewhere.base_url)], endpoint={"api_key_variable": "STAND_IN_KEY"})
        [(_, headers, _)] = elsewhere.requests
    assert "Authorization" not in headers
    assert "no chat completion (hello)" in error


@pytest.mark.parametrize("value", [None, " ", "line\nbreak", "schlüssel"])
def test_a_key_that_can_t_be_sent_is_told_by_its_variable(value, monkeypatch):
    monkeypatch.delenv("STAND_IN_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("STAND_IN_KEY", value)
    error, requests = split([], endpoint={"api_key_variable": "STAND_IN_KEY"})
    assert requests == []
    assert "the environment variable STAND_IN_KEY must hold the API key" in error
    assert value in (None, " ") or value not in error


def test_an_endpoint_that_is_not_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound and not listening: connections are refused.
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(SfvgenError, match=r"can't be reached \(.*refused\); start the"):
            ChatEndpoint(url, "m").ask([])


@pytest.mark.parametrize("url", ["http://a..b/v1", f"http://{'a' * 70}.com/v1"])
def test_a_host_that_is_none_can_t_be_reached(url):
    with pytest.raises(SfvgenError, match=r"can't be reached .* correct base_url"):
        ChatEndpoint(url, "m").ask([])


def test_a_timeout_beyond_all_clocks_is_told():
    with pytest.raises(SfvgenError, match=r"can't be reached \(.*too large|out of range"):
        ChatEndpoint("http://127.0.0.1:9/v1", "m", timeout_s=1e12).ask([])


@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_an_http_error_is_told_with_what_the_endpoint_says(status):
    body = json.dumps({"error": {"message": "no such\n model"}}, indent=1)
    error, requests = split([(status, body)])
    assert len(requests) == 1
    assert f"/v1/chat/completions answered HTTP {status} (" in error
    assert '"no such\\n model"' in error
    assert "\n" not in error


def test_a_silent_endpoint_is_given_up():
    error, _ = split([None], endpoint={"timeout_s": 0.2})
    assert "stayed silent for 0.2 s; raise timeout_s" in error


def test_an_endpoint_that_never_accepts_is_given_up():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        with pytest.raises(SfvgenError, match=r"stayed silent for 0\.1 s"):
            ChatEndpoint(url, "m", timeout_s=0.1).ask([])


@pytest.mark.parametrize(
    "body",
    [
        "<html>",
        b"\xff\xfe",
        "[" * 100_000,
        "[]",
        "null",
        '{"choices": []}',
        '{"choices": [{"text": "right"}]}',
        '{"choices": [{"message": {"content": null}}]}',
    ],
)
def test_what_is_no_chat_completion_is_told_at_once(body):
    error, requests = split([(200, body)])
    assert len(requests) == 1
    assert "answered with what is no chat completion (" in error
    assert len(error) < 600


@pytest.mark.parametrize(
    "base_url",
    [
        "localhost:8000/v1",
        "file:///etc/passwd",
        "http://",
        "http://[",
        "http://host:port/v1",
        "http://me:sesame@host/v1",
        "http://host/v1?version=1",
        "http://two words/v1",
    ],
)
def test_a_bad_address_is_refused_and_not_repeated(base_url):
    with pytest.raises(SfvgenError, match="base_url must be an http or https address") as raised:
        ChatEndpoint(base_url, "m")
    assert "sesame" not in str(raised.value)


@pytest.mark.parametrize("bad", [{"model": ""}, {"timeout_s": 0}, {"temperature": -1}])
def test_bad_endpoints_are_refused(bad):
    with pytest.raises(SfvgenError, match=next(iter(bad))):
        ChatEndpoint(**{"base_url": "https://host/v1", "model": "m", **bad})


@pytest.mark.parametrize("bad", [{"max_subgoals": 0}, {"num_retries": -1}, {"num_retries": 1.5}])
def test_bad_limits_are_refused(bad):
    with pytest.raises(SfvgenError, match=next(iter(bad))):
        LanguageModelConfig(**bad)


@pytest.mark.parametrize("bad", [[], [""], "left"])
def test_a_robot_that_understands_nothing_is_refused(bad):
    with pytest.raises(SfvgenError, match="what the robot understands"):
        LanguageModelSubgoals(ChatEndpoint("https://host/v1", "m"), bad)


def test_an_empty_goal_is_not_asked():
    error, requests = split([], goal=" ")
    assert requests == []
    assert "a goal in words is needed" in error
