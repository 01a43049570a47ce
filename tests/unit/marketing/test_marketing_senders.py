"""Senders against servers that speak HTTP and SMTP: tokens, TLS, passwords, answers that are long or slow."""

from __future__ import annotations

import base64
import json
import os
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
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
        (503, {"Retry_After": "Wed, 21 Oct 2015 07:28:00 GMT"}, (False, 0)),
        (503, {"Retry_After": "Fri, 21 Oct 2095 07:28:00 GMT"}, (False, 3_600)),
        (429, {"Retry_After": "tomorrow"}, (False, 0)),
        (429, {"Retry_After": "9" * 5_000}, (False, 3_600)),
    ],
)
def test_what_a_gateways_answer_means(
    gateway: Any, status: int, headers: dict[str, str], what: tuple[bool, float] | None
) -> None:
    assert failure(gateway(lambda request: request.say(status, **headers))) == what
    assert Gateway.heard[0]["Idempotency-Key"] == "spring/invite/mail/c1"
    assert "Authorization" not in Gateway.heard[0]


def test_a_gateway_may_say_until_when_it_wants_to_be_left_alone(gateway: Any) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    found = failure(gateway(lambda request: request.say(503, Retry_After=until)))
    assert found is not None and not found[0] and 500 < found[1] <= 600


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


@contextmanager
def dripping(line: bytes, trust: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that says this, and then a byte now and then for as long as one listens."""

    class Drip(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            talk = trust.wrap_socket(self.request, server_side=True) if trust else self.request
            with suppress(OSError), talk:
                talk.sendall(line)
                while not over.wait(0.02):
                    talk.sendall(b"x")

    over = threading.Event()
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drip)
    server.daemon_threads = True
    try:
        with serving(server) as port:
            yield port
    finally:
        over.set()


#: Sends by each configured sender; says what came of it, and whether anybody is still watched.
SEND = """
import sys
if sys.argv[1] == "eventlet":
    import eventlet
    eventlet.monkey_patch()
from marketing import cut_off, senders
from marketing.campaign_engine import StepChannel
from marketing.model import Profile
senders.MESSAGE_SECONDS = 0.3
profile = Profile(customer="c1", numbers=("+8613800138000",), email_addresses=("c1@example.net",))
message = senders.Message(
    id="m", profile=profile, channel=StepChannel.SMS, subject="Spring", body="Hello", origin={}
)
for config in senders.read_configs(sys.argv[2]):
    try:
        senders.ADAPTERS[config.adapter](config).send(message)
    except senders.SendFailed as error:
        print(error, error.final)
print(len(cut_off._watch._talks))
"""


@pytest.mark.parametrize("threads", ["real", "eventlet"])
def test_whoever_keeps_a_message_waiting_byte_by_byte_is_cut_off(threads: str, tmp_path: Path) -> None:
    """Workers send under eventlet."""
    files = Authority().write(tmp_path)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(files["tls_cert_file"], files["tls_key_file"])
    web = {"channel": "SMS", "adapter": "webhook"}
    mail = {"channel": "EMAIL", "adapter": "smtp", "sender": "news@example.net"}
    tls = {"ca_file": files["tls_ca_file"]}
    with (
        dripping(b"HTTP/1.1 2") as http,
        dripping(b"HTTP/1.1 2", trust) as https,
        dripping(b"220 ") as smtp,
        dripping(b"220 ", trust) as smtps,
    ):
        slow = [
            {**web, "id": "http", "target": f"http://127.0.0.1:{http}/"},
            {**web, "id": "https", "target": f"https://127.0.0.1:{https}/", **tls},
            {**mail, "id": "smtp", "target": f"127.0.0.1:{smtp}"},
            {**mail, "id": "smtps", "target": f"127.0.0.1:{smtps}", "tls": "implicit", **tls},
        ]
        said = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SEND, threads, json.dumps(slow)],
            env={**os.environ, "PYTHONPATH": "services"},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert said.stdout.splitlines() == ["took longer than 0.3 s False"] * 4 + ["0"], said.stderr


class Relay(socketserver.StreamRequestHandler):
    """A mail relay that wants TLS and a password, as far as a message needs one."""

    trust: ClassVar[ssl.SSLContext]
    implicit: ClassVar[bool]
    heard: ClassVar[list[str]]
    #: How it wants to be told the password.
    auth: ClassVar[str] = "PLAIN"

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
                self.wfile.write(f"250-relay\r\n250-STARTTLS\r\n250 AUTH {Relay.auth}\r\n".encode())
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
            elif line.startswith("AUTH LOGIN"):
                self.wfile.write(b"334 UGFzc3dvcmQ6\r\n")
                Relay.heard.append(f"AUTH {self.rfile.readline().decode().strip()}")
                self.wfile.write(b"235 known\r\n")
            else:
                self.wfile.write(b"235 known\r\n" if verb == "AUTH" else b"250 yes\r\n")


@contextmanager
def relaying(folder: Path, tls: str) -> Iterator[Callable[..., SmtpSender]]:
    """Makes senders to a relay, who log in as `user` with what the file "password" in the folder holds."""
    files = Authority().write(folder)
    Relay.trust, Relay.implicit, Relay.heard = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls == "implicit", []
    Relay.trust.load_cert_chain(files["tls_cert_file"], files["tls_key_file"])
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay)
    server.daemon_threads = True
    with serving(server) as port:

        def sender(ca_file: str = files["tls_ca_file"], user: str = "news") -> SmtpSender:
            return SmtpSender(
                SenderConfig(
                    id="m",
                    channel=StepChannel.EMAIL,
                    adapter="smtp",
                    target=f"127.0.0.1:{port}",
                    sender="news@example.net",
                    tls=tls,
                    user=user,
                    password_file=str(folder / "password"),
                    ca_file=ca_file,
                )
            )

        yield sender


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        ("CRAM-MD5 LOGIN PLAIN", ["\0größe\0пароль密码"]),
        ("CRAM-MD5 LOGIN", ["größe", "пароль密码"]),
        ("CRAM-MD5", None),
    ],
)
def test_a_password_may_have_letters_beyond_ascii(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auth: str, said: list[str] | None
) -> None:
    monkeypatch.setattr(Relay, "auth", auth)
    (tmp_path / "password").write_text("пароль密码\n", encoding="utf-8")
    with relaying(tmp_path, "starttls") as sender:
        assert failure(sender(user="größe")) == (None if said else (False, 0))
    told = [base64.b64decode(line.split()[-1]).decode() for line in Relay.heard if line.startswith("AUTH")]
    assert told == (said or [])


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_relay_is_trusted_by_its_certificate_and_told_the_password_then(tmp_path: Path, tls: str) -> None:
    strange = Authority("somebody else").write(tmp_path / "strange")
    password = tmp_path / "password"
    with relaying(tmp_path, tls) as sender:
        ours = sender()
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
