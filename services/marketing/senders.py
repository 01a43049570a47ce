"""Senders: how messages leave. One port, two adapters (SMTP, HTTP webhook); further ones implement `Sender`.

A message's id is that of its touch. It goes along as the mail's Message-ID and as the webhook's
`Idempotency-Key`: when a crash leaves it open whether a message went out, it is sent again under the same id,
and a receiver knows it.

Passwords and tokens are in files, read again for every message, so that they may be renewed at any time. What
a webhook answers beyond its status is of no use: little of it is read, and not for long.
"""

from __future__ import annotations

import contextlib
import json
import smtplib
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Protocol

import requests

from marketing.campaign_engine import StepChannel
from marketing.model import Profile

#: Longest wait for a sender, seconds.
TIMEOUT_SECONDS = 10.0
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


def _secret(file: str) -> str:
    """What a file holds. SendFailed."""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise SendFailed(f"{file} cannot be read") from None


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

    def _relay(self) -> smtplib.SMTP:
        if self._config.tls == "implicit":
            return smtplib.SMTP_SSL(self._host, self._port, timeout=TIMEOUT_SECONDS, context=self._trust())
        return smtplib.SMTP(self._host, self._port, timeout=TIMEOUT_SECONDS)

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
        try:
            with contextlib.closing(self._relay()) as relay:
                if self._config.tls == "starttls":
                    relay.starttls(context=self._trust())
                if self._config.user:
                    relay.login(self._config.user, _secret(self._config.password_file))
                relay.send_message(mail)
                # It was taken. Who says good-bye badly must not get it twice.
                with contextlib.suppress(smtplib.SMTPException, OSError):
                    relay.quit()
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            raise SendFailed("the recipient is refused", final=all(code >= 500 for code in codes)) from None
        except (smtplib.SMTPException, OSError) as error:
            raise SendFailed(type(error).__name__) from None


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
        try:
            answer = self._session().post(
                self._config.target,
                json=body,
                headers=headers,
                timeout=TIMEOUT_SECONDS,
                allow_redirects=False,
                stream=True,
                verify=self._config.ca_file or True,
            )
        except (requests.RequestException, OSError, ValueError) as error:
            raise SendFailed(type(error).__name__) from None
        with answer:
            _read_up(answer)
        status = answer.status_code
        if status == 409 or 200 <= status < 300:
            return
        final = 400 <= status < 500 and status not in (401, 403, 408, 429)
        asked = answer.headers.get("Retry-After", "")
        pause = float(asked) if status in (429, 503) and asked.isdecimal() else 0.0
        raise SendFailed(f"status {status}", final=final, pause_seconds=min(pause, ASKED_SECONDS_MAX))


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
    except requests.RequestException:
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
