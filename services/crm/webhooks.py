"""Webhooks: events for partners that have no access to the bus. Everything here blocks.

A delivery is one event for one webhook, made once however often the event comes (its `_id` follows from
both), sent until a 2xx comes back: again after 10 s, then twice as long each time, up to 6 hours, for 72
hours. Times here are real: a partner's server knows nothing of a sped-up business clock.

Deliveries of one webhook go out one after another, those of several at once. One that fails lets its webhook
rest, so that a partner who does not answer costs the others one try now and then, however much waits for him.

The URL is a partner's word, so it is not trusted: its host is resolved when it is used, every address must be
a public one unless the operator allows others, the connection goes to the very address that was looked at,
and redirections are not followed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import http.client
import ipaddress
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import urlsplit

from mongoengine import (
    BooleanField,
    DateTimeField,
    DictField,
    Document,
    IntField,
    ListField,
    StringField,
)
from pymongo import ReturnDocument, UpdateOne
from pymongo.write_concern import WriteConcern

from chassis import eventlog, logs, metrics
from chassis.bus import Event
from chassis.clock import Clock
from chassis.errors import InvalidArgument, ResourceExhausted, shorten
from chassis.ids import check_id, new_id
from chassis.mongo import Aggregate, find_repeat
from crm.model import Entry
from crm.records import Raw, Records

URL_CHARACTERS_MAX = 2_000
TYPES_MAX = 50
WEBHOOKS_MAX = 500
#: First and longest pause before another try, seconds, and when it is given up.
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 10, 6 * 3600
GIVE_UP_SECONDS = 72 * 3600
#: How long an old secret signs beside the new one, seconds.
ROTATION_SECONDS = 24 * 3600
#: Secrets that sign at once, however often they are changed within that time.
SECRETS_MAX = 5
KEPT_SECONDS = 30 * 24 * 3600
SEND_SECONDS_MAX = 10.0
#: Longer than a try takes: a delivery whose sender died is tried again after this.
CLAIM_SECONDS = 60
SENDERS = 8
#: Deliveries of one webhook in a round, and how long rounds follow each other without a pause, seconds: one
#: that was begun by then is waited for.
WEBHOOK_ROUND_DELIVERIES, ROUNDS_SECONDS_MAX = 50, 10.0
#: Longest rest of a webhook, seconds.
REST_SECONDS_MAX = 300
ANSWER_BYTES_MAX = 65_536
#: Deliveries of one replay, and how many of them are changed at once.
REPLAY_MAX, REPLAY_BATCH = 100_000, 1_000
#: How long a process goes on without another's change of a webhook, seconds.
CACHE_SECONDS = 2.0
#: A customer's name in an envelope.
_CUSTOMER = re.compile(r'"(customers/[A-Za-z0-9._~:\-]+)"')
#: Stands for the IPv4 address in its last 32 bits (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Lead inside, whatever a library says: IPv4 in the old form, translation of one's own, one's own site.
_INSIDE = tuple(ipaddress.IPv6Network(net) for net in ("::/96", "64:ff9b:1::/48", "fec0::/10"))
_MAJORITY = WriteConcern(w="majority")
_log = logs.get_logger(__name__)
_sent = metrics.counter("crm_webhook_tries_total", "Tries to deliver to webhooks.", ("outcome",))


class WebhookDocument(Aggregate):
    """A webhook."""

    resource_collection: ClassVar[str] = "webhooks"
    meta: ClassVar[dict[str, Any]] = {"collection": "webhooks", "indexes": []}

    url = StringField(required=True)
    event_types = ListField(StringField())
    enabled = BooleanField()
    #: [{"secret":, "until_ms": real ms or absent}], the present one first.
    secrets = ListField(DictField())
    disable_reason = StringField()
    #: Real ms of the first failure since the last success; absent after a success.
    failing_ms = IntField()


class DeliveryDocument(Document):
    """One event for one webhook; `_id` is "webhook|event"."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": "webhook_deliveries",
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
        "indexes": [
            {"fields": ["webhook", "-created_ms", "-_id"], "name": "webhook_newest"},
            {"fields": ["webhook", "state", "-created_ms", "-_id"], "name": "webhook_state_newest"},
            {
                "fields": ["webhook", "next_ms"],
                "name": "webhook_due",
                "partialFilterExpression": {"state": "PENDING"},
            },
            {"fields": ["subject"], "name": "subject"},
            {"fields": ["about"], "name": "about", "sparse": True},
            {"fields": ["created_at"], "name": "kept", "expireAfterSeconds": KEPT_SECONDS},
        ],
    }

    id = StringField(primary_key=True)
    webhook = StringField(required=True)
    event_id = StringField()
    event_type = StringField()
    #: What the event is about: an erased customer's deliveries are removed by it.
    subject = StringField()
    #: Customers whom the event names beside: what is personal goes with any of them. Absent for none.
    about = ListField(StringField())
    body = StringField()
    state = StringField(required=True)
    attempts = IntField()
    last_status = IntField()
    last_error = StringField()
    next_ms = IntField()
    created_ms = IntField()
    created_at = DateTimeField()


WEBHOOK_DOCUMENTS: tuple[type[Document], ...] = (WebhookDocument, DeliveryDocument)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came back of one try."""

    #: HTTP status; 0 none.
    status: int
    #: What went wrong; "" nothing.
    error: str = ""

    @property
    def good(self) -> bool:
        """A 2xx."""
        return 200 <= self.status < 300


def signature(body: bytes, keys: Sequence[str], unix_seconds: int) -> str:
    """The value of the header "Callmesh-Signature": one v1 for each secret that holds."""
    signed = f"{unix_seconds}.".encode() + body
    parts = [f"v1={hmac.new(key.encode(), signed, hashlib.sha256).hexdigest()}" for key in keys]
    return ",".join([f"t={unix_seconds}", *parts])


def check_url(url: str, *, private: bool) -> str:
    """InvalidArgument(webhook.url) for what can be no target. Hosts are looked up only when they are used."""
    field = "webhook.url"
    if not url or len(url) > URL_CHARACTERS_MAX or any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise InvalidArgument(field=field, why=f"must be a URL of at most {URL_CHARACTERS_MAX} characters")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InvalidArgument(field=field, why="is not a URL") from None
    if parts.scheme != "https" and not (private and parts.scheme == "http"):
        raise InvalidArgument(field=field, why="must begin with https://")
    if not host or parts.username or parts.password:
        raise InvalidArgument(field=field, why="must name a host, and no user")
    try:
        public = _is_public(host)
    except ValueError:
        return url
    if not private and not public:
        raise InvalidArgument(field=field, why="must not be a private address")
    return url


def _is_public(text: str) -> bool:
    """Whether an address is one of the open internet. One that stands for an IPv4 address, as a network
    without IPv4 writes it, counts as that. ValueError when it is no address.
    """
    address = ipaddress.ip_address(text)
    carried = None
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in inside for inside in _INSIDE):
            return False
        carried = address.sixtofour
        if address in _NAT64:
            carried = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return all(one.is_global and not one.is_multicast for one in (address, carried) if one is not None)


class _Deadline:
    """Shuts a connection when its time is over: a socket's own patience begins anew with every byte."""

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        #: The connection; None while there is none.
        self.line: socket.socket | None = None
        #: The time is over.
        self.over = False

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()

    def _cut(self) -> None:
        self.over = True
        if self.line is not None:
            with contextlib.suppress(OSError):
                self.line.shutdown(socket.SHUT_RDWR)


class Sender:
    """Posts, to public addresses alone unless told otherwise."""

    def __init__(self, *, private: bool, seconds: float = SEND_SECONDS_MAX) -> None:
        self._private = private
        self._seconds = seconds

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Never raises: what went wrong is the answer."""
        with _Deadline(self._seconds) as deadline:
            try:
                return self._posted(url, body, headers, deadline)
            except (OSError, http.client.HTTPException, ValueError) as error:
                late = f"no answer within {self._seconds:g} s"
                why = late if deadline.over else f"{type(error).__name__}: {error}"
                return Answer(status=0, error=shorten(why))

    def _posted(self, url: str, body: bytes, headers: Mapping[str, str], deadline: _Deadline) -> Answer:
        parts = urlsplit(url)
        address = self._address(parts.hostname or "", parts.port or _port(parts.scheme))
        connection = self._connection(parts.scheme, parts.hostname or "", address, deadline)
        with contextlib.closing(connection):
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, body, dict(headers))
            response = connection.getresponse()
            if deadline.over:
                # What was cut off may read like an answer.
                raise TimeoutError
            # The status says all; the rest is read so that the partner can finish.
            with contextlib.suppress(OSError, http.client.HTTPException):
                response.read(ANSWER_BYTES_MAX)
            good = 200 <= response.status < 300
            return Answer(status=response.status, error="" if good else f"HTTP {response.status}")

    def _address(self, host: str, port: int) -> tuple[Any, ...]:
        """Where to connect to. ValueError when any address of the host is not public."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for *_, address in found:
            if not self._private and not _is_public(str(address[0]).partition("%")[0]):
                raise ValueError("the host has a private address")
        return found[0]

    def _connection(
        self, scheme: str, host: str, found: tuple[Any, ...], deadline: _Deadline
    ) -> http.client.HTTPConnection:
        family, kind, protocol, _, address = found
        line = deadline.line = socket.socket(family, kind, protocol)
        try:
            line.settimeout(self._seconds)
            line.connect(address)
            if scheme == "https":
                context = ssl.create_default_context()
                secure = context.wrap_socket(line, server_hostname=host, do_handshake_on_connect=False)
                line = deadline.line = secure
                secure.do_handshake()
        except BaseException:
            line.close()
            raise
        connection = http.client.HTTPConnection(host, address[1], timeout=self._seconds)
        connection.sock = line
        return connection


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def due_query(webhook: str, now_ms: int) -> dict[str, Any]:
    """The filter document of what is to be sent to a webhook by now."""
    return {"webhook": webhook, "state": "PENDING", "next_ms": {"$lte": now_ms}}


def retry_seconds(attempts: int) -> int:
    """The pause after so many tries."""
    return int(min(RETRY_SECONDS_MIN * 2 ** min(attempts - 1, 20), RETRY_SECONDS_MAX))


class Webhooks:
    """Keeping webhooks, and delivering."""

    def __init__(
        self,
        clock: Clock,
        sender: Sender,
        *,
        known_types: Sequence[str],
        private: bool,
        now_ms: Callable[[], int] = _now_ms,
    ) -> None:
        """`known_types` are the event types that can be asked for; `private` allows private addresses."""
        self._records = Records(WebhookDocument, clock)
        self._sender = sender
        self._types = frozenset(known_types)
        self._private = private
        self._now_ms = now_ms
        #: Webhook -> (its failures in a row, real ms until which it rests).
        self._resting: dict[str, tuple[int, int]] = {}
        self._cached: list[Raw] = []
        self._cached_until = float("-inf")

    # --- keeping ---

    def create(
        self, id: str, fields: Mapping[str, Any], request_key: str | None, fingerprint: str | None
    ) -> tuple[Raw, str]:
        """(the webhook, its secret: "" when an earlier call with the request key created it)."""
        values = self._clean(fields)
        full = self._records.collection.count_documents({}, limit=WEBHOOKS_MAX) >= WEBHOOKS_MAX
        if full and find_repeat(WebhookDocument, request_key, fingerprint) is None:
            raise ResourceExhausted(subject="webhooks", limit=f"at most {WEBHOOKS_MAX}")
        secret = _new_secret()
        done = self._records.insert(
            check_id("webhook_id", id) if id else new_id(),
            {**values, "secrets": [{"secret": secret}]},
            request_key=request_key,
            fingerprint=fingerprint,
        )
        return done, secret if done["secrets"][0]["secret"] == secret else ""

    def _clean(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        check_url(fields["url"], private=self._private)
        types = list(dict.fromkeys(fields["event_types"]))
        if not 1 <= len(types) <= TYPES_MAX:
            raise InvalidArgument(field="webhook.event_types", why=f"must hold 1 to {TYPES_MAX}")
        for index, kind in enumerate(types):
            if kind not in self._types:
                why = f"{kind[:80]!r} is not an event that can be delivered"
                raise InvalidArgument(field=f"webhook.event_types[{index}]", why=why)
        return {**fields, "event_types": types}

    def get(self, id: str) -> Raw:
        """NotFound when there is none."""
        return self._records.get(id)

    def page(self, after: str | None, limit: int) -> list[Raw]:
        """By id."""
        return self._records.find({} if after is None else {"_id": {"$gt": after}}, [("_id", 1)], limit)

    def update(self, id: str, edit: Callable[[Raw], Mapping[str, Any]], expected_version: int | None) -> Raw:
        """`edit` answers the wanted fields. Enabling forgets why it was disabled."""

        def change(raw: Raw) -> Mapping[str, Any]:
            wanted = self._clean(edit(raw))
            fresh = {"disable_reason": None, "failing_ms": None} if wanted["enabled"] else {}
            return {**wanted, **fresh}

        return self._records.update(id, change, expected_version)

    def delete(self, id: str, expected_version: int | None) -> Raw:
        """Removes it and what waits for it."""
        gone = self._records.delete(id, expected_version)
        _deliveries().delete_many({"webhook": id})
        return gone

    def rotate(self, id: str) -> tuple[Raw, str]:
        """(the webhook, its new secret); the old one also signs for a day."""
        secret = _new_secret()

        def change(raw: Raw) -> Mapping[str, Any]:
            now_ms = self._now_ms()
            present, *older = raw["secrets"]
            last = {"secret": present["secret"], "until_ms": now_ms + ROTATION_SECONDS * 1000}
            still = [held for held in older if held["until_ms"] > now_ms]
            return {"secrets": [{"secret": secret}, last, *still][:SECRETS_MAX]}

        return self._records.update(id, change), secret

    # --- delivering ---

    def offer_all(self, events: Sequence[Event]) -> int:
        """Makes a delivery of each event for every webhook that wants it; how many. Idempotent."""
        enabled = self._enabled()
        writes = []
        for event in events:
            wanted = [hook for hook in enabled if event.type in hook["event_types"]]
            body = event.to_json() if wanted else ""
            writes += [self._delivery(hook["_id"], event, body) for hook in wanted]
        if writes:
            _deliveries().bulk_write(writes, ordered=False)
        return len(writes)

    def _enabled(self) -> list[Raw]:
        now = time.monotonic()
        if now >= self._cached_until:
            self._cached = [hook for hook in self.page(None, WEBHOOKS_MAX) if hook.get("enabled")]
            self._cached_until = now + CACHE_SECONDS
        return self._cached

    def _delivery(self, webhook: str, event: Event, body: str) -> UpdateOne:
        now_ms = self._now_ms()
        values = {
            "webhook": webhook,
            "event_id": event.id,
            "event_type": event.type,
            "subject": event.subject,
            "body": body,
            "state": "PENDING",
            "attempts": 0,
            "next_ms": now_ms,
            "created_ms": now_ms,
            "created_at": datetime.fromtimestamp(now_ms / 1000, tz=UTC),
        }
        if others := sorted(set(_CUSTOMER.findall(body)) - {event.subject}):
            values["about"] = others
        return UpdateOne({"_id": f"{webhook}|{event.id}"}, {"$setOnInsert": values}, upsert=True)

    def deliver(self) -> int:
        """Tries what is due until nothing is, or for `ROUNDS_SECONDS_MAX`, one of each webhook at least; how
        many.
        """
        ends = time.monotonic() + ROUNDS_SECONDS_MAX
        in_turn = functools.partial(self._try_in_turn, ends=ends)
        count = 0
        while due := self._due():
            with ThreadPoolExecutor(min(SENDERS, len(due)), thread_name_prefix="webhook") as senders:
                count += sum(senders.map(in_turn, due))
            if time.monotonic() >= ends:
                break
        return count

    def _due(self) -> list[list[str]]:
        """Ids of deliveries that are due, by webhook, each one's longest due first; none of those that rest
        or are disabled. Asked one by one: however much waits for one, the others' are found beside it.
        """
        now_ms = self._now_ms()
        found = []
        for hook in self._enabled():
            if self._resting.get(hook["_id"], (0, 0))[1] > now_ms:
                continue
            due = _deliveries().find(due_query(hook["_id"], now_ms), {"_id": 1}).sort("next_ms", 1)
            found.append([raw["_id"] for raw in due.limit(WEBHOOK_ROUND_DELIVERIES)])
        return [ids for ids in found if ids]

    def _try_in_turn(self, ids: Sequence[str], ends: float) -> int:
        """One webhook's deliveries, until one fails or the monotonic clock says `ends`, so that nobody waits
        for who answers slowly; how many were tried.
        """
        for number, id in enumerate(ids, start=1):
            if not self._try(id) or time.monotonic() >= ends:
                return number
        return len(ids)

    def _try(self, id: str) -> bool:
        """Whether its webhook may be sent more."""
        now_ms = self._now_ms()
        raw = _deliveries().find_one_and_update(
            {"_id": id, "state": "PENDING", "next_ms": {"$lte": now_ms}},
            {"$set": {"next_ms": now_ms + CLAIM_SECONDS * 1000}, "$inc": {"attempts": 1}},
            return_document=ReturnDocument.AFTER,
        )
        if raw is None:
            return True
        hook: Raw | None = self._records.collection.find_one({"_id": raw["webhook"]})
        if hook is None or not hook.get("enabled"):
            # Given back without a try: it is kept, and goes out when the webhook is enabled again.
            given_back = {"next_ms": now_ms, "attempts": raw["attempts"] - 1}
            _deliveries().update_one({"_id": id}, {"$set": given_back})
            self._cached_until = float("-inf")
            return False
        answer = self._send(hook, raw["event_id"], raw["event_type"], raw["body"].encode())
        _deliveries().update_one({"_id": id}, {"$set": self._outcome(raw, answer)})
        self._note(hook, answer)
        self._rest(hook["_id"], answer)
        return answer.good

    def _rest(self, hook: str, answer: Answer) -> None:
        """Lets a webhook rest after a failure, the longer the more there were in a row."""
        if answer.good:
            self._resting.pop(hook, None)
            return
        failures = self._resting.get(hook, (0, 0))[0] + 1
        seconds = min(retry_seconds(failures), REST_SECONDS_MAX)
        self._resting[hook] = (failures, self._now_ms() + seconds * 1000)

    def _send(self, hook: Raw, event_id: str, event_type: str, body: bytes) -> Answer:
        now = self._now_ms()
        keys = [s["secret"] for s in hook["secrets"] if s.get("until_ms") is None or s["until_ms"] > now]
        headers = {
            "Content-Type": "application/cloudevents+json",
            "User-Agent": "callmesh-webhooks",
            "Callmesh-Event-Id": event_id,
            "Callmesh-Event-Type": event_type,
            "Callmesh-Signature": signature(body, keys, now // 1000),
        }
        answer = self._sender.post(hook["url"], body, headers)
        _sent.labels("delivered" if answer.good else "failed").inc()
        return answer

    def _outcome(self, raw: Raw, answer: Answer) -> dict[str, Any]:
        now_ms = self._now_ms()
        told = {"last_status": answer.status, "last_error": answer.error}
        if answer.good:
            return {**told, "state": "DELIVERED"}
        next_ms = now_ms + retry_seconds(raw["attempts"]) * 1000
        if next_ms - raw["created_ms"] > GIVE_UP_SECONDS * 1000:
            return {**told, "state": "FAILED"}
        return {**told, "next_ms": next_ms}

    def _note(self, hook: Raw, answer: Answer) -> None:
        """Keeps when failures began; disables a webhook that takes nothing for three days."""
        now_ms, failing_ms = self._now_ms(), hook.get("failing_ms")
        if answer.good:
            if failing_ms is not None:
                self._records.update(hook["_id"], lambda _: {"failing_ms": None})
        elif failing_ms is None:
            self._records.update(hook["_id"], lambda _: {"failing_ms": now_ms})
        elif now_ms - failing_ms > GIVE_UP_SECONDS * 1000:
            why = f"no success for 72 hours, last: {answer.error}"
            self._records.update(hook["_id"], lambda _: {"enabled": False, "disable_reason": why})
            _log.warning("webhook.disabled", webhook=hook["_id"])

    def test(self, id: str) -> dict[str, Any]:
        """Posts a sample now; what came back, as a delivery that is not kept."""
        hook = self.get(id)
        event_id, now_ms = new_id(), self._now_ms()
        kind = hook["event_types"][0]
        sample = Event(
            id=event_id,
            source="crm",
            type=kind,
            subject="",
            time=datetime.fromtimestamp(now_ms // 1000, tz=UTC),
            data={},
        )
        answer = self._send(hook, event_id, kind, sample.to_json().encode())
        return {
            "_id": f"{id}|{event_id}",
            "webhook": id,
            "event_id": event_id,
            "event_type": kind,
            "state": "DELIVERED" if answer.good else "FAILED",
            "attempts": 1,
            "last_status": answer.status,
            "last_error": answer.error,
            "created_ms": now_ms,
        }

    def deliveries(self, id: str, state: str, after: tuple[int, str] | None, limit: int) -> list[Raw]:
        """Newest first."""
        self.get(id)
        query: dict[str, Any] = {"webhook": id}
        if state:
            query["state"] = state
        if after is not None:
            query["created_ms"] = {"$lte": after[0]}
            query["$or"] = [{"created_ms": {"$lt": after[0]}}, {"_id": {"$lt": after[1]}}]
        found = _deliveries().find(query, {"body": 0}).sort([("created_ms", -1), ("_id", -1)]).limit(limit)
        return list(found)

    def replay(self, id: str, from_ms: int, until_ms: int | None, failed_only: bool) -> int:
        """Sends what was made in a span again, the oldest `REPLAY_MAX` of it; how many. Its 72 hours begin
        anew.
        """
        self.get(id)
        span: dict[str, int] = {"$gte": from_ms}
        if until_ms is not None:
            span["$lt"] = until_ms
        query: dict[str, Any] = {"webhook": id, "created_ms": span}
        query["state"] = "FAILED" if failed_only else {"$in": ["DELIVERED", "FAILED"]}
        now_ms = self._now_ms()
        again = {"state": "PENDING", "next_ms": now_ms, "attempts": 0, "created_ms": now_ms}
        found = _deliveries().find(query, {"_id": 1}).sort([("created_ms", 1), ("_id", 1)]).limit(REPLAY_MAX)
        ids, count = [raw["_id"] for raw in found], 0
        for start in range(0, len(ids), REPLAY_BATCH):
            batch = {**query, "_id": {"$in": ids[start : start + REPLAY_BATCH]}}
            count += int(_deliveries().update_many(batch, {"$set": again}).modified_count)
        return count


def forget(subject: str, *, keep: str) -> None:
    """Removes every delivery about a subject that was legally erased, but those of the event that says so;
    from those about others that name it what is personal is taken. Idempotent.
    """
    _deliveries().delete_many({"subject": subject, "event_id": {"$ne": keep}})
    for raw in _deliveries().find({"about": subject}, {"body": 1}):
        bare = {"$set": {"body": eventlog.without_people(raw["body"])}, "$unset": {"about": ""}}
        _deliveries().update_one({"_id": raw["_id"]}, bare)


def forget_interactions(entries: Iterable[Entry]) -> None:
    """Removes every delivery about interactions of somebody who was legally erased. Idempotent."""
    subjects = [name for entry in entries for name in (_subject_of(entry), f"interactions/{entry.id}")]
    if subjects:
        _deliveries().delete_many({"subject": {"$in": subjects}})


def _subject_of(entry: Entry) -> str:
    """What the events of an interaction's source are about."""
    collection = {"CALL": "calls", "TICKET": "tickets", "OFFER": "decisions"}.get(
        entry.kind.value, "interactions"
    )
    return f"{collection}/{entry.source_id}"


def _deliveries() -> Any:
    return DeliveryDocument._get_collection().with_options(write_concern=_MAJORITY)


def _new_secret() -> str:
    return "whsec_" + secrets.token_hex(32)
