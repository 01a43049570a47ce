"""Files that somebody renews: looked at again when asked for, the last good contents where one cannot be
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import structlog

from chassis.errors import StartError

_log = structlog.get_logger(__name__)

#: Largest file that is taken for a certificate, key, token or connection string, bytes.
FILE_BYTES_MAX = 1 << 20


def _read(path: Path) -> bytes:
    if path.stat().st_size > FILE_BYTES_MAX:
        raise ValueError(f"is larger than {FILE_BYTES_MAX} bytes")
    return path.read_bytes()


class WatchedFiles:
    """Files whose contents are read again when one of them has changed."""

    def __init__(self, paths: Sequence[str]) -> None:
        """StartError when one of them cannot be read now."""
        self._paths = tuple(Path(path) for path in paths)
        self._seen: object = None
        self._contents: tuple[bytes, ...] = ()
        #: +1 with every change that could be read.
        self.generation = 0
        try:
            self._look()
        except (OSError, ValueError) as error:
            raise StartError(f"a file that the settings name cannot be read: {error}") from None

    def contents(self) -> tuple[bytes, ...]:
        """What they hold; the last that could be read, when now one of them cannot."""
        try:
            self._look()
        except (OSError, ValueError) as error:
            _log.warning("files.unreadable", files=[path.name for path in self._paths], error=str(error))
        return self._contents

    def _look(self) -> None:
        # A mounted secret is a link that is moved: its target's time and number change together.
        seen = [(stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in map(Path.stat, self._paths)]
        if seen == self._seen:
            return
        self._contents = tuple(_read(path) for path in self._paths)
        self._seen = seen
        self.generation += 1
