"""Addresses of routers, as the settings and the directory's lead lists write them."""

from __future__ import annotations

import re

#: `host:port`; the host is a name, an IPv4 address or an IPv6 address in brackets.
PATTERN = r"[A-Za-z0-9_.\-\[\]:]+:[0-9]{1,5}"
_PORT_MAX = 65_535


def is_address(text: str) -> bool:
    """Whether a text looks like "router-1:7120", with a port that there is."""
    return re.fullmatch(PATTERN, text) is not None and 1 <= int(text.rpartition(":")[2]) <= _PORT_MAX
