"""The public keys that tokens are signed with: from a file that somebody replaces, or from the identity
provider's address.

Both give the keys as they are known now; `generation` tells when they have changed. From an address they are
fetched by a thread of their own, so that no call waits for the provider; when it is away, the known keys go
on, however long. A key that nobody knows wakes that thread, at most every `UNKNOWN_KEY_SECONDS`.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from chassis import logs, metrics
from chassis.errors import StartError

#: The file is looked at again after this, and for a key that is not known at most this often, seconds.
LOOK_SECONDS, RELOAD_SECONDS_MIN = 10.0, 1.0
#: The address is asked again for a key that is not known at most this often, seconds.
UNKNOWN_KEY_SECONDS = 10.0
#: Longest that one fetch may take, and that it may wait for the next bytes, seconds.
FETCH_SECONDS_MAX, SILENCE_SECONDS_MAX = 10.0, 5.0
#: First pause after a fetch that failed; it doubles, up to the time between two fetches, seconds.
RETRY_SECONDS_MIN = 2.0
#: Largest key set in bytes, and most keys in one.
KEY_SET_BYTES_MAX, KEYS_MAX = 256 * 1024, 100

_log = logs.get_logger(__name__)
Keys = Mapping[str, Any]


class KeySource(Protocol):
    """Where the keys come from."""

    #: +1 with every change.
    generation: int

    def keys(self) -> Keys:
        """Key id -> key, as known now. Never waits for a network."""

    def missed(self) -> None:
        """A token named a key that is not among them: looks again, now or soon."""

    def close(self) -> None:
        """Ends what runs in the background."""


def parse(name: str, text: bytes | str) -> dict[str, Any]:
    """Key id -> key; StartError, which names `name`, when the text is malformed, empty, too large, or holds a
    key that is symmetric or has no id.
    """
    import jwt

    if len(text) > KEY_SET_BYTES_MAX:
        raise StartError(f"{name}: a key set has at most {KEY_SET_BYTES_MAX} bytes")
    try:
        data = json.loads(text)
        found = data.get("keys", ())
        if len(found) > KEYS_MAX:
            raise StartError(f"{name}: a key set has at most {KEYS_MAX} keys")
        if any(key.get("kty") == "oct" for key in found):
            raise StartError(f"{name}: symmetric keys are not accepted")
        keys = jwt.PyJWKSet.from_dict(data).keys
    except (ValueError, AttributeError, TypeError, RecursionError, jwt.PyJWTError) as error:
        raise StartError(f"{name} cannot be used: {error}") from None
    if any(not key.key_id for key in keys):
        raise StartError(f"{name}: every key needs a kid")
    return {str(key.key_id): key for key in keys}


class FileKeys:
    """Keys in a file. Belongs to one thread."""

    def __init__(self, path: str) -> None:
        """StartError when it cannot be used now."""
        self._path = Path(path)
        self._name = f"key file {self._path.name}"
        self.generation = 0
        self._text = self._read()
        self._keys = parse(self._name, self._text)
        self._looked_at = time.monotonic()

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                return file.read(KEY_SET_BYTES_MAX + 1)
        except OSError as error:
            raise StartError(f"{self._name} cannot be read: {error}") from None

    def keys(self) -> Keys:
        self._look(LOOK_SECONDS)
        return self._keys

    def missed(self) -> None:
        self._look(RELOAD_SECONDS_MIN)

    def _look(self, seconds: float) -> None:
        """Reads it again unless that was done within so many seconds; one that cannot be used leaves the
        known keys in force.
        """
        now = time.monotonic()
        if now - self._looked_at < seconds:
            return
        self._looked_at = now
        try:
            text = self._read()
            if text == self._text:
                return
            self._keys = parse(self._name, text)
        except StartError as error:
            _log.warning("keys.unusable", error=str(error))
            return
        self._text = text
        self.generation += 1

    def close(self) -> None:
        """Nothing runs."""


class UrlKeys:
    """Keys at an address, fetched anew every `refresh_seconds`. Close it."""

    def __init__(
        self, url: str, *, refresh_seconds: float, authority_file: str = "", fallback: str = "", service: str
    ) -> None:
        """Fetches once, and waits for that. When it fails, the file `fallback` counts for the first time;
        StartError without one.
        """
        self._url = url
        self._verify: str | bool = authority_file or True
        self._refresh_seconds = refresh_seconds
        self.generation = 0
        self._fetched = metrics.counter(
            "callmesh_auth_keys_fetched_total", "Fetches of the key set, by outcome.", ("service", "outcome")
        )
        self._service = service
        self._wake = threading.Event()
        self._ended = False
        self._failures = 0
        self._fresh_at = time.monotonic()
        self._text = b""
        self._keys: Keys = {}
        if not self._refresh():
            if not fallback:
                raise StartError(f"no key set could be fetched from {url}")
            self._keys = FileKeys(fallback).keys()
        age = metrics.gauge(
            "callmesh_auth_keys_age_seconds", "Time since the key set was fetched.", ("service",)
        )
        age.labels(service).set_function(lambda: time.monotonic() - self._fresh_at)
        self._missed_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="jwks", daemon=True)
        self._thread.start()

    def keys(self) -> Keys:
        return self._keys

    def missed(self) -> None:
        now = time.monotonic()
        if now - self._missed_at >= UNKNOWN_KEY_SECONDS:
            self._missed_at = now
            self._wake.set()

    def close(self) -> None:
        """The thread ends by itself when a fetch is under way."""
        self._ended = True
        self._wake.set()

    def _run(self) -> None:
        while not self._ended:
            self._wake.wait(self._pause())
            self._wake.clear()
            if not self._ended:
                self._refresh()

    def _pause(self) -> float:
        """Spread, so that the servers of a platform do not ask all at once."""
        seconds = self._refresh_seconds
        if self._failures:
            seconds = min(seconds, RETRY_SECONDS_MIN * 2.0 ** min(self._failures - 1, 16))
        return seconds * random.uniform(0.8, 1.0)

    def _refresh(self) -> bool:
        """Fetches, and takes over what can be used. False, the known keys in force, otherwise."""
        import requests

        try:
            text = self._fetch()
            if text != self._text:
                self._keys = parse("the key set", text)
                self._text = text
                self.generation += 1
        except (requests.RequestException, StartError, OSError, ValueError) as error:
            self._failures += 1
            self._fetched.labels(self._service, "failed").inc()
            _log.warning("keys.not_fetched", error=str(error)[:300], failures=self._failures)
            return False
        self._failures = 0
        self._fresh_at = time.monotonic()
        self._fetched.labels(self._service, "ok").inc()
        return True

    def _fetch(self) -> bytes:
        import requests

        deadline = time.monotonic() + FETCH_SECONDS_MAX
        # No redirect: who answers in the provider's place decides who may call.
        with requests.get(
            self._url,
            headers={"Accept": "application/json"},
            timeout=(SILENCE_SECONDS_MAX, SILENCE_SECONDS_MAX),
            verify=self._verify,
            allow_redirects=False,
            stream=True,
        ) as answer:
            if answer.status_code != 200:
                raise ValueError(f"the answer was {answer.status_code}")
            parts, size = [], 0
            for part in answer.iter_content(16 * 1024):
                parts.append(part)
                size += len(part)
                if size > KEY_SET_BYTES_MAX:
                    raise ValueError(f"a key set has at most {KEY_SET_BYTES_MAX} bytes")
                if time.monotonic() > deadline:
                    raise ValueError(f"the answer took longer than {FETCH_SECONDS_MAX:g} s")
        return b"".join(parts)
