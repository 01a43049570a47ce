"""Senders: how messages leave. One port, two adapters (SMTP, HTTP webhook); further ones implement `Sender`.

A message's id is that of its touch. It goes along as the mail's Message-ID and as the webhook's
`Idempotency-Key`: when a crash leaves it open whether a message went out, it is sent again under the same id,
and a receiver knows it.

Passwords and tokens are in files, read again for every message, so that they may be renewed at any time. What
a webhook answers beyond its status is of no use: little of it is read, and not for long. No message takes
longer than `MESSAGE_SECONDS` in all, however a sender keeps it waiting (cut_off.py).
"""

from __future__ import annotations

import base64
import contextlib
import json
import smtplib
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from marketing.campaign_engine import StepChannel
from marketing.cut_off import Talk
from marketing.model import Profile

#: Longest wait for a sender, and longest time that a message takes in all, seconds.
TIMEOUT_SECONDS = 10.0
MESSAGE_SECONDS = 30.0
#: What is read of an answer's body, bytes.
ANSWER_BYTES_MAX = 4_096
#: Longest pause that a sender may ask for, seconds.
ASKED_SECONDS_MAX = 3_600
SENDERS_MAX = 50


class SendFailed(Exception):
    """A sender did not take a message; `final` when trying again is of no use. `pause_seconds` is how long
    the sender asks to be left alone, 0 when it does not say.
    """

    def __init__(self, why: str, *, final: bool = False, pause_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.final = final
        self.pause_seconds = pause_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """What is to be sent."""

    #: Unique for ever.
    id: str
    #: Whom it addresses.
    profile: Profile
    channel: StepChannel
    #: For mail; "" else.
    subject: str
    body: str
    #: Names of what it belongs to: campaign, phase, step, variant.
    origin: Mapping[str, str]


class Sender(Protocol):
    """A way of sending."""

    def reaches(self, profile: Profile) -> bool:
        """Whether there is an address."""

    def send(self, message: Message) -> None:
        """Hands a message over; SendFailed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SenderConfig:
    """One configured sender."""

    id: str
    channel: StepChannel
    #: "smtp" or "webhook".
    adapter: str
    #: Where to: "host:port", or a URL.
    target: str
    #: For mail: who it is from.
    sender: str = ""
    #: For mail: the address. "{email}" is the customer's own as crm knows it; "{number}" (digits) and
    #: "{customer}" (id) are filled in as mail gateways of the other channels want it.
    address: str = "{email}"
    #: For mail: "" plain, "starttls", or "implicit" (TLS from the first byte, often port 465).
    tls: str = ""
    #: For mail: who logs in, "" nobody, and the file with the password.
    user: str = ""
    password_file: str = ""
    #: For webhooks: file with a token that goes along as `Authorization: Bearer`.
    token_file: str = ""
    #: Authority (PEM) of the other side's certificate; "" means the system's.
    ca_file: str = ""


def read_configs(text: str) -> tuple[SenderConfig, ...]:
    """Senders from the setting's JSON list. ValueError in words."""
    try:
        raw = json.loads(text or "[]")
        found = tuple(SenderConfig(**{**item, "channel": StepChannel(item["channel"])}) for item in raw)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"senders must be a JSON list of objects with id, channel, adapter, target: {error}"
        ) from None
    if len(found) > SENDERS_MAX or len({one.id for one in found}) < len(found):
        raise ValueError(f"senders need ids of their own, at most {SENDERS_MAX}")
    for one in found:
        try:
            one.address.format(email="", number="", customer="")
        except (LookupError, ValueError, AttributeError):
            raise ValueError(
                f"the address of sender {one.id!r} may ask for {{email}}, {{number}} and {{customer}}"
            ) from None
        if one.tls not in ("", "starttls", "implicit"):
            raise ValueError(f"tls of sender {one.id!r} must be starttls or implicit, or left out")
        if bool(one.user) != bool(one.password_file) or (one.user and not one.tls):
            raise ValueError(f"sender {one.id!r} logs in with user and password_file, over tls only")
    if unknown := [one.adapter for one in found if one.adapter not in ADAPTERS]:
        raise ValueError(f"senders know the adapters {', '.join(ADAPTERS)}, not {unknown[0]}")
    return found


def _failed(talk: Talk, error: Exception) -> SendFailed:
    """What came between, in a word."""
    return SendFailed(f"took longer than {talk.seconds:g} s" if talk.late else type(error).__name__)


def _secret(file: str) -> str:
    """What a file holds. SendFailed."""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise SendFailed(f"{file} cannot be read") from None


def _log_in(relay: smtplib.SMTP, user: str, password: str) -> None:
    """Says who we are. `smtplib` knows ASCII alone; by RFC 4616 names and passwords are UTF-8."""
    if user.isascii() and password.isascii():
        relay.login(user, password)
        return
    relay.ehlo_or_helo_if_needed()
    known = relay.esmtp_features.get("auth", "").upper().split()
    said = [base64.b64encode(one.encode()).decode() for one in (f"\0{user}\0{password}", user, password)]
    if "PLAIN" in known:
        code, answer = relay.docmd("AUTH", f"PLAIN {said[0]}")
    elif "LOGIN" in known:
        code, answer = relay.docmd("AUTH", f"LOGIN {said[1]}")
        if code == 334:
            code, answer = relay.docmd(said[2])
    else:
        raise smtplib.SMTPNotSupportedError("takes no password beyond ASCII")
    if code not in (235, 503):
        raise smtplib.SMTPAuthenticationError(code, answer)


class _Watched:
    """A relay whose talk is cut off when it takes too long, its greeting included."""

    def __init__(self, talk: Talk, *args: Any, **kwargs: Any) -> None:
        self._talk = talk
        super().__init__(*args, **kwargs)

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        self._talk.over(self)
        return super().connect(*args, **kwargs)  # type: ignore[misc]


class _Relay(_Watched, smtplib.SMTP):
    """Plain, or with STARTTLS."""


class _TlsRelay(_Watched, smtplib.SMTP_SSL):
    """TLS from the first byte."""


class SmtpSender:
    """Mail, over one connection a message: a relay that went away is met again with the next."""

    def __init__(self, config: SenderConfig) -> None:
        host, _, port = config.target.partition(":")
        self._host, self._port = host, int(port or 25)
        self._config = config

    def _address(self, profile: Profile) -> Address | None:
        """The one mailbox of a customer, None for none. What crm holds is theirs to type: a list of
        addresses, a line break or letters that plain SMTP cannot carry is no mailbox.
        """
        values = {
            "email": next(iter(profile.email_addresses), ""),
            "number": profile.numbers[0].lstrip("+") if profile.numbers else "",
            "customer": profile.customer,
        }
        if any(f"{{{name}}}" in self._config.address and not value for name, value in values.items()):
            return None
        text = self._config.address.format(**values)
        try:
            found = Address(addr_spec=text)
        except (ValueError, IndexError, MessageError):
            return None
        return found if found.domain and text.isascii() else None

    def reaches(self, profile: Profile) -> bool:
        """As the port says."""
        return self._address(profile) is not None

    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._config.ca_file or None)

    def _relay(self, talk: Talk) -> smtplib.SMTP:
        where = (self._host, self._port)
        if self._config.tls == "implicit":
            return _TlsRelay(talk, *where, timeout=TIMEOUT_SECONDS, context=self._trust())
        return _Relay(talk, *where, timeout=TIMEOUT_SECONDS)

    def send(self, message: Message) -> None:
        """As the port says. A refused recipient is final, and so is one whose address is gone since the
        message was queued; everything else may pass.
        """
        address = self._address(message.profile)
        if address is None:
            raise SendFailed("there is no address", final=True)
        mail = EmailMessage()
        mail["From"] = self._config.sender
        mail["To"] = address
        mail["Subject"] = " ".join(message.subject.split())
        domain = self._config.sender.rpartition("@")[2] or "localhost"
        mail["Message-ID"] = f"<{message.id.replace('/', '.')}@{domain}>"
        mail.set_content(message.body)
        with Talk(MESSAGE_SECONDS) as talk:
            try:
                self._hand_over(talk, mail)
            except smtplib.SMTPRecipientsRefused as error:
                codes = [code for code, _ in error.recipients.values()]
                final = all(code >= 500 for code in codes)
                raise SendFailed("the recipient is refused", final=final) from None
            except (smtplib.SMTPException, OSError, ValueError) as error:
                raise _failed(talk, error) from None

    def _hand_over(self, talk: Talk, mail: EmailMessage) -> None:
        with contextlib.closing(self._relay(talk)) as relay:
            if self._config.tls == "starttls":
                relay.starttls(context=self._trust())
            if self._config.user:
                _log_in(relay, self._config.user, _secret(self._config.password_file))
            relay.send_message(mail)
            # It was taken. Who says good-bye badly must not get it twice.
            with contextlib.suppress(smtplib.SMTPException, OSError):
                relay.quit()


#: The talk of each thread that is sending.
_sending = threading.local()


class _Heard:
    """A connection that names itself to the talk that goes over it, new or used again."""

    def connect(self) -> None:
        _sending.talk.over(self)
        super().connect()  # type: ignore[misc]

    def request(self, *args: Any, **kwargs: Any) -> None:
        _sending.talk.over(self)
        super().request(*args, **kwargs)  # type: ignore[misc]


class _HttpConnection(_Heard, HTTPConnection):
    pass


class _HttpsConnection(_Heard, HTTPSConnection):
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


_POOLS = {"http": _HttpPool, "https": _HttpsPool}


class _Adapter(HTTPAdapter):
    """Connections that name themselves, also those to a proxy."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager


class WebhookSender:
    """A POST of JSON to a URL."""

    def __init__(self, config: SenderConfig) -> None:
        self._config = config
        # A session is one thread's.
        self._local = threading.local()

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            for scheme in _POOLS:
                session.mount(f"{scheme}://", _Adapter())
        return session

    def reaches(self, profile: Profile) -> bool:
        """As the port says."""
        if self._config.channel is StepChannel.EMAIL:
            return bool(profile.email_addresses)
        return bool(profile.numbers) or self._config.channel is StepChannel.WEBHOOK

    def send(self, message: Message) -> None:
        """As the port says. 2xx is taken, 4xx but 401, 403, 408, 409 and 429 is final; 409 says that it was
        taken before. A token that does not count (any more) is no fault of the message.
        """
        body = {
            "id": message.id,
            "customer": f"customers/{message.profile.customer}",
            "number": message.profile.numbers[0] if message.profile.numbers else "",
            "email": next(iter(message.profile.email_addresses), ""),
            "channel": message.channel.value,
            "subject": message.subject,
            "body": message.body,
            **message.origin,
        }
        headers = {"Idempotency-Key": message.id}
        if self._config.token_file:
            headers["Authorization"] = f"Bearer {_secret(self._config.token_file)}"
        with Talk(MESSAGE_SECONDS) as talk:
            _sending.talk = talk
            answer = self._post(talk, body, headers)
            with answer:
                _read_up(answer)
        status = answer.status_code
        if status == 409 or 200 <= status < 300:
            return
        final = 400 <= status < 500 and status not in (401, 403, 408, 429)
        asked = answer.headers.get("Retry-After", "") if status in (429, 503) else ""
        raise SendFailed(f"status {status}", final=final, pause_seconds=_asked_seconds(asked))

    def _post(self, talk: Talk, body: Mapping[str, str], headers: Mapping[str, str]) -> requests.Response:
        try:
            return self._session().post(
                self._config.target,
                json=body,
                headers=headers,
                timeout=TIMEOUT_SECONDS,
                allow_redirects=False,
                stream=True,
                verify=self._config.ca_file or True,
            )
        except (requests.RequestException, OSError, ValueError) as error:
            raise _failed(talk, error) from None


def _asked_seconds(after: str) -> float:
    """How long a `Retry-After` header asks to wait: seconds, or until a date (RFC 9110, section 10.2.3). 0
    for one that cannot be read.
    """
    if after.isdecimal():
        return float(min(int(after[:20]), ASKED_SECONDS_MAX))
    try:
        date = parsedate_to_datetime(after)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    if date.tzinfo is None:
        # "-0000": in UTC, from where is not said.
        date = date.replace(tzinfo=UTC)
    return min(max(0.0, (date - datetime.now(UTC)).total_seconds()), ASKED_SECONDS_MAX)


def _read_up(answer: requests.Response) -> None:
    """Reads the rest of an answer, for its connection can then be used again. One that is long or slow is cut
    off: what became of the message was said before.
    """
    ends = time.monotonic() + TIMEOUT_SECONDS
    try:
        # Byte by byte (of a buffer), for more would wait until so much has come.
        for count, _ in enumerate(answer.iter_content(1), 1):
            if count >= ANSWER_BYTES_MAX or time.monotonic() >= ends:
                break
    except (requests.RequestException, OSError, ValueError):
        pass


#: What makes a sender of each adapter.
ADAPTERS: Mapping[str, Callable[[SenderConfig], Any]] = {"smtp": SmtpSender, "webhook": WebhookSender}


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """The messages of one sender, which must not hold up those of another."""

    #: The sender's id, or "channel?" for messages that nobody can send (any more).
    name: str
    channel: StepChannel
    #: None where nobody sends.
    sender: Sender | None
    #: Which touches of the channel: a condition on their sender.
    senders: Mapping[str, Any]


class Senders:
    """The configured senders, by id and by channel."""

    def __init__(
        self, configs: Sequence[SenderConfig], built_in: Mapping[StepChannel, Sender] | None = None
    ) -> None:
        """`built_in` serve channels that need no configuration."""
        self.configs = tuple(configs)
        self._made: dict[str, Sender] = {one.id: ADAPTERS[one.adapter](one) for one in configs}
        self._built_in = dict(built_in or {})

    def of(self, channel: StepChannel, sender: str = "") -> tuple[str, Sender] | None:
        """(id, sender) of a name, or the channel's first; None for none."""
        if (found := self._built_in.get(channel)) is not None:
            return channel.value, found
        for config in self.configs:
            if sender in ("", config.id) and config.channel is channel:
                return config.id, self._made[config.id]
        return None

    def lanes(self, channels: Iterable[StepChannel]) -> list[Lane]:
        """Everything that may wait to be sent over these channels, each in one lane."""
        found = []
        for channel in channels:
            if (built_in := self._built_in.get(channel)) is not None:
                found.append(Lane(name=channel.value, channel=channel, sender=built_in, senders={}))
                continue
            ids: list[str] = []
            for config in self.configs:
                if config.channel is channel:
                    # The channel's first one is its default.
                    names = [config.id] if ids else ["", config.id]
                    ids += names
                    only = {"sender": {"$in": names}}
                    made = self._made[config.id]
                    found.append(Lane(name=config.id, channel=channel, sender=made, senders=only))
            others = {"sender": {"$nin": ids}} if ids else {}
            found.append(Lane(name=f"{channel.value}?", channel=channel, sender=None, senders=others))
        return found

    def reaches(self, profile: Profile, channel: StepChannel, sender: str = "") -> bool:
        """Whether somebody can be reached over a channel by a sender, "" for the channel's own."""
        found = self.of(channel, sender)
        return found is not None and found[1].reaches(profile)
