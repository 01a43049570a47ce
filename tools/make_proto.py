"""Generate the Python stubs of every proto under proto/ into services/ (git-ignored), typed (.pyi) messages
included.

Run as `python tools/make_proto.py`; `make proto` does. Does nothing when the stubs are newer than every
input, so that it can stand before any other target at no cost.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
TARGET = ROOT / "services"


def newest(paths: list[Path]) -> float:
    """The latest modification time, 0.0 for no path."""
    return max((path.stat().st_mtime for path in paths), default=0.0)


def main() -> int:
    """Returns a process exit status: 0, or protoc's own."""
    protos = sorted((SOURCE / "callmesh").rglob("*.proto"))
    stubs = [TARGET / p.relative_to(SOURCE).parent / f"{p.stem}_pb2.py" for p in protos]
    inputs = [*protos, Path(__file__)]
    if all(s.exists() for s in stubs) and min(s.stat().st_mtime for s in stubs) >= newest(inputs):
        return 0
    from google import api  # the googleapis protos lie beside their generated modules
    from grpc_tools import protoc

    includes = [
        SOURCE,
        Path(next(iter(api.__path__))).parent.parent,
        Path(str(resources.files("grpc_tools"))) / "_proto",
    ]
    for directory in {stub.parent for stub in stubs}:
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob("*_pb2*"):
            stale.unlink()
        (directory / "__init__.py").touch()
        (directory.parent / "__init__.py").touch()
    outputs = [f"--{kind}_out={TARGET}" for kind in ("python", "pyi", "grpc_python")]
    return int(
        protoc.main(["protoc", *[f"-I{include}" for include in includes], *outputs, *map(str, protos)])
    )


if __name__ == "__main__":
    sys.exit(main())
