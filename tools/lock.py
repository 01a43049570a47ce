"""Pin and hash requirements.in and requirements-dev.in into requirements.txt and requirements-dev.txt.

Run as `make lock`. The locks hold for every supported Python and name no host: whoever installs chooses the
index. Pins that already stand in the locks stay unless `--upgrade` is given or the .in file no longer allows
them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Made by `make lock` from {source}; change that file and run it again.\n"
OPTIONS = (
    "--generate-hashes",
    "--universal",
    "--python-version=3.11",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--no-header",
    "--quiet",
)


def lock(name: str, extra: list[str]) -> int:
    """Lock `<name>.in` into `<name>.txt`; the exit status of uv."""
    target = ROOT / f"{name}.txt"
    uv = Path(sys.executable).parent / "uv"
    done = subprocess.run([uv, "pip", "compile", f"{name}.in", "-o", target.name, *OPTIONS, *extra], cwd=ROOT)
    if done.returncode == 0:
        target.write_text(HEADER.format(source=f"{name}.in") + target.read_text())
    return done.returncode


def main(arguments: list[str]) -> int:
    """Returns a process exit status."""
    extra = ["--upgrade"] if "--upgrade" in arguments else []
    # The development lock is solved under the runtime's pins, so that both name the same versions.
    return lock("requirements", extra) or lock(
        "requirements-dev", ["--constraint", "requirements.txt", *extra]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
