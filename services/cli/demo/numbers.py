"""Constructed callers' numbers: real prefixes of the region's city, made-up subscribers.

No data set has a caller's place and the call together, so the demo constructs the geography and says so.
A customer has the same number, and so the same region, in every run with the same seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Mobile prefixes (three operators) of each region's city, as the `phone` data has them, and its area code.
MOBILE_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "beijing": (
        "1380000",
        "1390105",
        "1360112",
        "1500119",
        "1580105",
        "1860007",
        "1890014",
        "1330105",
        "1300112",
    ),
    "shanghai": (
        "1380161",
        "1390168",
        "1360175",
        "1500007",
        "1580042",
        "1860168",
        "1890161",
        "1330084",
        "1300217",
    ),
    "guangzhou": (
        "1380273",
        "1390224",
        "1360007",
        "1501176",
        "1580021",
        "1861302",
        "1890238",
        "1330224",
        "1300056",
    ),
    "chengdu": (
        "1380805",
        "1390819",
        "1361806",
        "1500280",
        "1582800",
        "1860287",
        "1894284",
        "1330805",
        "1300812",
    ),
}
AREA_CODES: Mapping[str, str] = {"beijing": "10", "shanghai": "21", "guangzhou": "20", "chengdu": "28"}
#: One caller in this many has a fixed line.
FIXED_LINE_EVERY = 5


def _fraction(*parts: str) -> int:
    """64 bits that depend on the parts alone."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest())


@dataclass(frozen=True, kw_only=True, slots=True)
class Geography:
    """Where callers live: keys to regions by their shares of the load, and numbers to match."""

    #: Changes who lives where.
    seed: int
    #: Region id and share, adding up to 1.
    shares: Sequence[tuple[str, float]]

    def region_of(self, key: str) -> str:
        """The region in which that caller lives."""
        point = _fraction(str(self.seed), "region", key) / 2**64
        for region, share in self.shares:
            point -= share
            if point < 0:
                return region
        return self.shares[-1][0]

    def number_of(self, key: str) -> str:
        """That caller's number, E.164."""
        region = self.region_of(key)
        bits = _fraction(str(self.seed), "number", key)
        if bits % FIXED_LINE_EVERY == 0:
            return f"+86{AREA_CODES[region]}6{bits // 64 % 10_000_000:07d}"
        prefixes = MOBILE_PREFIXES[region]
        return f"+86{prefixes[bits // 64 % len(prefixes)]}{bits // 4096 % 10_000:04d}"
