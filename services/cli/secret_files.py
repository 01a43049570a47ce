"""Random secrets of a local stack, made once and kept where only their owner can read them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

#: Length of a generated secret in bytes, before it is written as hexadecimal digits.
SECRET_BYTES = 32


def secret_file(directory: Path, name: str) -> Path:
    """The file `name` with 64 random hexadecimal digits, the same for as long as it stands."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / name
    if path.is_file() and len(path.read_text().strip()) == 2 * SECRET_BYTES:
        return path
    # Written aside and moved, so that a start cut short never leaves half a secret; the mode is given at
    # creation, so that nobody can read it even for a moment.
    scratch = path.with_suffix(".tmp")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(SECRET_BYTES) + "\n")
    scratch.replace(path)
    return path
