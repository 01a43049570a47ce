"""Senders against servers that speak HTTP and SMTP: tokens, TLS, passwords, answers that are long or slow."""

from __future__ import annotations

import base64
import json
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from chassis.testing.certificates import Authority
from marketing import senders
from marketing.campaign_engine import StepChannel
from marketing.model import Profile
from marketing.senders import Message, SenderConfig, SendFailed, SmtpSender, WebhookSender, read_configs

#: Longest wait for what must come, seconds.
WAIT = 10.0


class Gateway(BaseHTTPRequestHandler):
    """Answers a message as the test wants it."""

    protocol_version = "HTTP/1.1"
    answer: ClassVar[Callable[[Gateway], None]]
    heard: ClassVar[list[dict[str, str]]]
    #: Set when the client has cut an answer off.
    cut_off: ClassVar[threading.Event]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Gateway.heard.append(dict(self.headers))
        try:
            type(self).answer(self)
        except OSError:
            Gateway.cut_off.set()

    def say(self, status: int, length: int | None = 0, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Connection", "keep-alive" if length is not None else "close")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(WAIT)


@pytest.fixture
def gateway() -> Iterator[Callable[..., WebhookSender]]:
    Gateway.heard, Gateway.cut_off = [], threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    server.daemon_threads = True

    with serving(server) as port:

        def made(answer: Callable[[Gateway], None], **changes: Any) -> WebhookSender:
            Gateway.answer = answer
            return WebhookSender(
                SenderConfig(
                    id="w",
                    channel=StepChannel.SMS,
                    adapter="webhook",
                    target=f"http://127.0.0.1:{port}/",
                    **changes,
                )
            )

        yield made


def message() -> Message:
    profile = Profile(customer="c1", numbers=("+8613800138000",), email_addresses=("c1@example.net",))
    return Message(
        id="spring/invite/mail/c1",
        profile=profile,
        channel=StepChannel.SMS,
        subject="Spring",
        body="Hello",
        origin={},
    )


def failure(sender: Any) -> tuple[bool, float] | None:
    """(final, pause) of a message that was not taken."""
    try:
        sender.send(message())
    except SendFailed as error:
        return error.final, error.pause_seconds
    return None


@pytest.mark.parametrize(
    ("status", "headers", "what"),
    [
        (204, {}, None),
        (409, {}, None),
        (302, {"Location": "http://127.0.0.1:1/"}, (False, 0)),
        (400, {}, (True, 0)),
        (422, {"Retry_After": "9"}, (True, 0)),
        # The message is not at fault.
        (401, {}, (False, 0)),
        (403, {}, (False, 0)),
        (408, {}, (False, 0)),
        (500, {}, (False, 0)),
        (429, {"Retry_After": "90"}, (False, 90)),
        (503, {"Retry_After": "999999"}, (False, 3_600)),
        (503, {"Retry_After": "Wed, 21 Oct 2026 07:28:00 GMT"}, (False, 0)),
    ],
)
def test_what_a_gateways_answer_means(
    gateway: Any, status: int, headers: dict[str, str], what: tuple[bool, float] | None
) -> None:
    assert failure(gateway(lambda request: request.say(status, **headers))) == what
    assert Gateway.heard[0]["Idempotency-Key"] == "spring/invite/mail/c1"
    assert "Authorization" not in Gateway.heard[0]


def test_a_renewed_token_goes_along_with_the_next_message(gateway: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    sender = gateway(lambda request: request.say(204), token_file=str(file))
    assert failure(sender) == (False, 0) and not Gateway.heard, "without its token it says nothing"
    for token in ("first", "second"):
        file.write_text(f"{token}\n")
        assert failure(sender) is None
    assert [one["Authorization"] for one in Gateway.heard] == ["Bearer first", "Bearer second"]
    file.write_text("broken\ntoken")
    assert failure(sender) == (False, 0) and len(Gateway.heard) == 2


def test_an_answer_without_end_is_cut_off(gateway: Any) -> None:
    def endless(request: Gateway) -> None:
        request.say(202, None)
        while True:
            request.wfile.write(b"x" * 65_536)

    assert failure(gateway(endless)) is None
    assert Gateway.cut_off.wait(WAIT)


def test_an_answer_that_drips_is_cut_off(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "TIMEOUT_SECONDS", 0.2)
    done = threading.Event()

    def drips(request: Gateway) -> None:
        request.say(202, 9_999)
        while not done.wait(0.02):
            request.wfile.write(b"x")

    try:
        assert failure(gateway(drips)) is None
        assert Gateway.cut_off.wait(WAIT)
    finally:
        done.set()


class Relay(socketserver.StreamRequestHandler):
    """A mail relay that wants TLS and a password, as far as a message needs one."""

    trust: ClassVar[ssl.SSLContext]
    implicit: ClassVar[bool]
    heard: ClassVar[list[str]]

    def _begin_tls(self) -> None:
        self.request = Relay.trust.wrap_socket(self.request, server_side=True)
        self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", 0)

    def handle(self) -> None:
        try:
            self._talk()
        except OSError:
            Relay.heard.append("(gone)")
        finally:
            # TLS took the socket over: nobody else closes it.
            self.rfile.close()
            self.wfile.close()
            self.request.close()

    def _talk(self) -> None:
        if Relay.implicit:
            self._begin_tls()
        self.wfile.write(b"220 relay\r\n")
        while line := self.rfile.readline().decode().strip():
            verb = line.split()[0].upper()
            Relay.heard.append(line)
            if verb == "EHLO":
                self.wfile.write(b"250-relay\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n")
            elif verb == "STARTTLS":
                self.wfile.write(b"220 go\r\n")
                self._begin_tls()
            elif verb == "DATA":
                self.wfile.write(b"354 go\r\n")
                while self.rfile.readline().strip() != b".":
                    pass
                self.wfile.write(b"250 taken\r\n")
            elif verb == "QUIT":
                # What was taken stays taken, whatever a relay says afterwards.
                self.wfile.write(b"421 too late\r\n")
            else:
                self.wfile.write(b"235 known\r\n" if verb == "AUTH" else b"250 yes\r\n")


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_relay_is_trusted_by_its_certificate_and_told_the_password_then(tmp_path: Path, tls: str) -> None:
    authority = Authority()
    files = authority.write(tmp_path)
    strange = Authority("somebody else").write(tmp_path / "strange")
    Relay.trust, Relay.implicit, Relay.heard = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls == "implicit", []
    Relay.trust.load_cert_chain(files["tls_cert_file"], files["tls_key_file"])
    password = tmp_path / "password"
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay)
    server.daemon_threads = True
    with serving(server) as port:

        def sender(ca_file: str) -> SmtpSender:
            return SmtpSender(
                SenderConfig(
                    id="m",
                    channel=StepChannel.EMAIL,
                    adapter="smtp",
                    target=f"127.0.0.1:{port}",
                    sender="news@example.net",
                    tls=tls,
                    user="news",
                    password_file=str(password),
                    ca_file=ca_file,
                )
            )

        ours = sender(files["tls_ca_file"])
        assert failure(ours) == (False, 0), "there is no password yet"
        for word in ("first", "second"):
            password.write_text(f"{word}\n")
            assert failure(ours) is None
        assert failure(sender(strange["tls_ca_file"])) == (False, 0)
        assert failure(sender(str(tmp_path / "none"))) == (False, 0)
    said = [base64.b64decode(line.split()[-1]) for line in Relay.heard if line.startswith("AUTH")]
    assert said == [b"\0news\0first", b"\0news\0second"]
    assert sum(line.upper() == "DATA" for line in Relay.heard) == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tls": "ssl3"}, "starttls or implicit"),
        ({"user": "news", "password_file": "f"}, "over tls only"),
        ({"user": "news", "tls": "starttls"}, "user and password_file"),
        ({"password": "open"}, "JSON list"),
    ],
)
def test_a_sender_that_would_say_its_password_aloud_is_refused(changes: dict[str, str], why: str) -> None:
    mail = {"id": "m", "channel": "EMAIL", "adapter": "smtp", "target": "relay.example.net:587"}
    with pytest.raises(ValueError, match=why):
        read_configs(json.dumps([{**mail, **changes}]))
    assert read_configs(json.dumps([{**mail, "tls": "starttls", "user": "n", "password_file": "f"}]))
