"""A language model behind an endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from sfvgen_planner.errors import SfvgenError, require

Message = dict[str, Any]
"""``{"role": "system", "user" or "assistant", "content": text or list of parts}``."""

_MAX_BYTES = 4_000_000
_MAX_QUOTED = 300


@dataclass(frozen=True)
class ChatEndpoint:
    """Where a language model answers: OpenAI's own API, vLLM, llama.cpp, Ollama and many others.

    Attributes:
        base_url: what comes before ``/chat/completions``, such as ``http://localhost:8000/v1``.
        model: its name there.
        api_key_variable: environment variable that holds the API key, such as
            ``OPENAI_API_KEY``; ``None`` sends none. The key is read for each request and appears
            in no message.
        timeout_s: seconds that the endpoint may stay silent.
        temperature: of the answers, at least 0; ``None`` leaves it to the endpoint, as some models
            allow only their own.

    Raises:
        SfvgenError: for a value outside what is described here.
    """

    base_url: str
    model: str
    api_key_variable: str | None = None
    timeout_s: float = 60.0
    temperature: float | None = 0.0

    def __post_init__(self) -> None:
        # The address is not repeated, as it may hold a password.
        require(
            isinstance(self.base_url, str) and _is_base_url(self.base_url),
            "base_url must be an http or https address without user, query or fragment, such as "
            "http://localhost:8000/v1",
        )
        require(bool(self.model), "model must be the name of a model of the endpoint")
        require(
            0 < self.timeout_s < float("inf"),
            f"timeout_s must be positive and finite, got {self.timeout_s}",
        )
        require(
            self.temperature is None or self.temperature >= 0,
            f"temperature must be at least 0, got {self.temperature}",
        )

    @property
    def url(self) -> str:
        """Where the messages are posted."""
        return self.base_url.rstrip("/") + "/chat/completions"

    def ask(self, messages: list[Message]) -> str:
        """The model's answer to a conversation.

        Raises:
            SfvgenError: there is no API key, the endpoint can't be reached, stays silent, answers
                with an HTTP error, or with what is no chat completion.
        """
        key = self._api_key()
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        request = urllib.request.Request(  # noqa: S310 (only http and https are accepted)
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        if key is not None:
            # A redirection must not carry the key to another host.
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        return self._content(self._post(request, key), key)

    def _api_key(self) -> str | None:
        if self.api_key_variable is None:
            return None
        key = os.environ.get(self.api_key_variable, "").strip()
        require(
            bool(key) and key.isascii() and key.isprintable(),
            f"the environment variable {self.api_key_variable} must hold the API key of {self.url}",
        )
        return key

    def _post(self, request: urllib.request.Request, key: str | None) -> bytes:
        try:
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:  # noqa: S310
                    answer: bytes = response.read(_MAX_BYTES)
                    return answer
            except urllib.error.HTTPError as error:
                with error:
                    said = _quoted(error.read(_MAX_BYTES), key)
                raise SfvgenError(
                    f"{self.url} answered HTTP {error.code} ({said}); check base_url, model and "
                    "API key"
                ) from error
        except SfvgenError:
            raise
        except (OSError, HTTPException, ValueError, OverflowError) as error:
            # The last two: a host or a redirection that is no address, a timeout beyond all clocks.
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise SfvgenError(
                    f"{self.url} stayed silent for {self.timeout_s:g} s; raise timeout_s, or see "
                    "whether it is overloaded"
                ) from error
            raise SfvgenError(
                f"{self.url} can't be reached ({reason}); start the endpoint, or correct base_url"
            ) from error

    def _content(self, answer: bytes, key: str | None) -> str:
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            content = None
        if not isinstance(content, str):
            raise SfvgenError(
                f"{self.url} answered with what is no chat completion ({_quoted(answer, key)}); "
                "base_url must be that of an OpenAI-compatible endpoint, often ending in /v1"
            )
        return content


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # Raises where it is no number.
    except ValueError:
        return False
    plain = not (parts.username or parts.query or parts.fragment)
    printable = url.isascii() and url.isprintable() and " " not in url
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain and printable


def _quoted(answer: bytes, key: str | None) -> str:
    """The beginning of an answer on one line, without the key that it may repeat."""
    text = " ".join(answer.decode(errors="replace").split())
    if key is not None:
        text = text.replace(key, "[API key]")
    return text[:_MAX_QUOTED] or "nothing more"
