"""Lay the googleapis protos out for buf in build/proto-deps, from the installed googleapis-common-protos.

buf would fetch them from a registry; taking them from the locked Python package keeps one version for the
stubs and for the checks, and needs no network. Does nothing when the copy is that of the installed version.
"""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "build" / "proto-deps"
PACKAGE = "googleapis-common-protos"


def main() -> int:
    """Returns a process exit status."""
    from google import api  # its folder lies beside google/rpc and google/type

    version, stamp = metadata.version(PACKAGE), TARGET / ".version"
    if stamp.exists() and stamp.read_text() == version:
        return 0
    source = Path(next(iter(api.__path__))).parent
    shutil.rmtree(TARGET, ignore_errors=True)
    for folder in ("api", "rpc", "type", "longrunning"):
        for proto in (source / folder).rglob("*.proto"):
            target = TARGET / "google" / proto.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(proto, target)
    stamp.write_text(version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
