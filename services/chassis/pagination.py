"""List pages (AIP-158): opaque tokens that are checked, and bound to the request that they continue."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from chassis.errors import InvalidArgument

#: Longest token that is looked at.
TOKEN_LENGTH_MAX = 2048
#: Most values in a composite key.
KEY_VALUES_MAX = 8
#: Whole numbers in a key are below, and at least minus this: a database takes no others.
INT64 = 1 << 63

_VERSION = 1
_CHECKSUM_BYTES = 9

#: What a page may continue after: the sort key of its last row.
Scalar = str | int | float
Key = Scalar | list[Scalar]

Row = TypeVar("Row")
Value = TypeVar("Value", str, int, float)


def _short_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()[:_CHECKSUM_BYTES]).decode()


def fingerprint(*parts: Any) -> str:
    """A short digest of the values that a token must not outlive: filter, order, parent."""
    return _short_hash(json.dumps(parts, sort_keys=True, default=str).encode())


def request_fingerprint(request: Message) -> str:
    """The fingerprint of a list request: which one it is, and all of its fields but page_size and
    page_token. Many lists go by an id: one's token would be taken by another.
    """
    copy = type(request)()
    copy.CopyFrom(request)
    for name in ("page_size", "page_token"):
        if name in copy.DESCRIPTOR.fields_by_name:
            copy.ClearField(name)
    of = copy.DESCRIPTOR.full_name.encode()
    return _short_hash(b"%b\0%b" % (of, copy.SerializeToString(deterministic=True)))


def _is_scalar(value: object) -> bool:
    """Whether a database takes the value: a token's checksum is no secret, so anything may come in one."""
    match value:
        case bool():
            return False
        case int():
            return -INT64 <= value < INT64
        case float():
            return math.isfinite(value)
        case str():
            # JSON can say one half of a character of two, which nothing can write.
            return not any("\ud800" <= each <= "\udfff" for each in value)
    return False


def _is_key(value: object) -> bool:
    # Never a mapping: the key goes into a database query, where a mapping would be an operator.
    if isinstance(value, list):
        return 0 < len(value) <= KEY_VALUES_MAX and all(_is_scalar(item) for item in value)
    return _is_scalar(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Which rows a list call is to answer."""

    #: Most rows to return, >= 1.
    limit: int
    #: Sort key of the last row of the page before; None on the first page. A tuple comes back as a list.
    after: Any = None
    #: Digest of the request's other fields.
    fingerprint: str = ""

    @classmethod
    def parse(
        cls,
        page_size: int,
        page_token: str,
        *,
        default: int = 50,
        maximum: int = 1000,
        fingerprint: str,
    ) -> Page:
        """A page size of 0 means `default`, above `maximum` means `maximum`.

        InvalidArgument(page_size) when negative, InvalidArgument(page_token) when the token was changed, is
        not ours or belongs to a request with another `fingerprint`.
        """
        if page_size < 0:
            raise InvalidArgument(field="page_size", why=f"must not be negative, got {page_size}")
        limit = min(page_size or default, maximum)
        after = _read_token(page_token, fingerprint) if page_token else None
        return cls(limit=limit, after=after, fingerprint=fingerprint)

    @classmethod
    def of(cls, request: Any, *, default: int = 50, maximum: int = 1000) -> Page:
        """The page that a list request asks for, bound to all of its other fields. Raises as `parse`."""
        return cls.parse(
            request.page_size,
            request.page_token,
            default=default,
            maximum=maximum,
            fingerprint=request_fingerprint(request),
        )

    def key(self, *kinds: type[Scalar]) -> tuple[Any, ...] | None:
        """`after` as a composite key with values of these kinds; None on the first page. A token's checksum
        is no secret, so its key may be anything: InvalidArgument(page_token) for another shape.
        """
        if self.after is None:
            return None
        values = self.after if isinstance(self.after, list) else [self.after]
        if len(values) != len(kinds) or not all(map(isinstance, values, kinds)):
            raise _bad_token()
        return tuple(values)

    def value(self, kind: type[Value]) -> Value | None:
        """`after` as one value of this kind; None on the first page. InvalidArgument(page_token) as `key`."""
        key = self.key(kind)
        return None if key is None else key[0]

    def cut(
        self, found: Sequence[Row], key: Callable[[Row], Key | tuple[Scalar, ...]], *, more: bool = False
    ) -> tuple[Sequence[Row], str]:
        """(the rows of this page, the token of the next). `found` begins after `after` and was asked for with
        one row more than `limit`, which says whether there is a next page; `more` says so where fewer came.
        `key` is a row's sort key.
        """
        shown = found[: self.limit]
        return shown, self.next_token(key(shown[-1]) if shown and (more or len(found) > self.limit) else None)

    def part(self, ranking: Sequence[Row]) -> tuple[Sequence[Row], str]:
        """(this page's part, the token of the next) of a ranking that is made anew for each page: its key is
        a place in it. InvalidArgument(page_token) as `key`.
        """
        start = self.value(int) or 0
        if start < 0:
            raise _bad_token()
        end = start + self.limit
        return ranking[start:end], self.next_token(end if end < len(ranking) else None)

    def next_token(self, last_key: Key | tuple[Scalar, ...] | None) -> str:
        """The token for the page after the row with `last_key`; "" for None (there is no further page).

        ValueError for a key that is not made of text and numbers of 64 bits, or whose token would be too
        long.
        """
        if last_key is None:
            return ""
        key = list(last_key) if isinstance(last_key, tuple) else last_key
        if not _is_key(key):
            raise ValueError(f"a page key holds text and numbers of 64 bits, not {type(last_key).__name__}")
        body = json.dumps(
            [_VERSION, self.fingerprint, key], ensure_ascii=False, separators=(",", ":")
        ).encode()
        token = base64.urlsafe_b64encode(_short_hash(body).encode() + body).decode().rstrip("=")
        if len(token) > TOKEN_LENGTH_MAX:
            raise ValueError("a page key is too long for a token")
        return token


def _bad_token() -> InvalidArgument:
    return InvalidArgument(field="page_token", why="is not a token that this list gave out")


def _read_token(token: str, fingerprint: str) -> Any:
    if len(token) > TOKEN_LENGTH_MAX:
        raise _bad_token()
    try:
        raw = base64.b64decode(
            token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True
        )
        body = raw[len(_short_hash(b"")) :]
        if raw != _short_hash(body).encode() + body:
            raise _bad_token()
        version, bound_to, key = json.loads(body)
    except (UnicodeError, binascii.Error, ValueError, TypeError, RecursionError):
        raise _bad_token() from None
    if version != _VERSION or not _is_key(key):
        raise _bad_token()
    if bound_to != fingerprint:
        raise InvalidArgument(field="page_token", why="belongs to a request with other fields")
    return key
