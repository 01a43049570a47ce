"""The baseline of the breaking-change check holds every package: what it lacks may be broken unseen."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

PROTO = Path(__file__).parents[3] / "proto"


def test_the_baseline_holds_every_proto() -> None:
    known = FileDescriptorSet.FromString((PROTO / "baseline.binpb").read_bytes())
    ours = {path.relative_to(PROTO).as_posix() for path in (PROTO / "callmesh").rglob("*.proto")}
    assert len(ours) > 20 and ours - {file.name for file in known.file} == set(), "make proto-baseline"
