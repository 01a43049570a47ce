"""One started program, known by more than its process id."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

#: Environment variable that every descendant of a started program inherits.
TOKEN_VARIABLE = "CALLMESH_PROCESS_TOKEN"
#: How often a waiting loop looks again, in seconds.
POLL_SECONDS = 0.02
#: How long a program gets to vanish after SIGKILL, in seconds; only a process stuck in the kernel needs
#: longer.
KILL_SECONDS_MAX = 10.0
#: How much of a log goes into an error message.
LOG_TAIL_CHARACTERS = 3000
#: How many rounds of killing descendants, each of which may have started more.
SWEEPS_MAX = 20

_LAUNCHER = Path(__file__).resolve().with_name("launcher.py")


class ProcessFailed(Exception):
    """A program did not start, did not become ready, or could not be stopped; the text has the end of its
    log.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessRecord:
    """What identifies a started program across time and across processes."""

    #: Process id.
    pid: int
    #: Start time in clock ticks since boot (field 22 of /proc/<pid>/stat): differs when the id was reused.
    start_ticks: int
    #: The kernel's id of this boot; start times of another boot mean nothing.
    boot_id: str
    #: Value of CALLMESH_PROCESS_TOKEN in the program and its descendants.
    token: str
    #: The command line, for the reader of the file.
    command: list[str]


def boot_id() -> str:
    """The kernel's random id of the current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat_fields(directory: str | Path) -> list[str] | None:
    """The fields of a process's or thread's stat file, in its directory of /proc, from the state (field 3)
    on; None when there is no such process.
    """
    try:
        text = Path(directory, "stat").read_text()
    except OSError:
        return None
    # The command name (field 2) may contain anything, so count from its closing bracket.
    return text[text.rindex(")") + 2 :].split()


def start_ticks(pid: int) -> int | None:
    """The kernel's start time of a living process; None for one that is gone or a zombie."""
    fields = _stat_fields(f"/proc/{pid}")
    if fields is None or fields[0] in ("Z", "X"):
        return None
    return int(fields[19])


def thread_states(pid: int) -> set[str]:
    """The states that the process's threads are in, by proc(5): "R" running, "S" sleeping, "T" stopped, ...;
    empty for one that is gone.
    """
    found = (_stat_fields(thread) for thread in Path(f"/proc/{pid}/task").glob("*"))
    return {fields[0] for fields in found if fields is not None}


def carriers(token: str) -> Iterator[int]:
    """Ids of the living processes whose environment carries `token`."""
    needle = f"{TOKEN_VARIABLE}={token}".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue
        if needle in environment.split(b"\0") and start_ticks(int(entry)) is not None:
            yield int(entry)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Polls `condition` until it holds or `seconds` have passed; what it said last."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


class ManagedProcess:
    """Starts a program and stops it with all its descendants; a second instance on the same directory finds
    it again.
    """

    def __init__(self, run_dir: Path, name: str) -> None:
        self.run_dir = Path(run_dir)
        self.name = name
        self.log_path = self.run_dir / f"{name}.log"
        self.record_path = self.run_dir / f"{name}.pid.json"
        self._child: subprocess.Popen[bytes] | None = None
        #: What this instance's own start is known by while no record says so.
        self._token = ""

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        die_with_parent: bool = True,
    ) -> None:
        """Starts `command` in a session of its own, its output appended to `<name>.log`.

        With `die_with_parent` the kernel kills it when the *thread* that called this ends: call it from a
        thread that lives as long as the stack. Raises ProcessFailed when it runs already or cannot be
        executed.
        """
        if self.alive():
            raise ProcessFailed(f"{self.name} runs already (process {self.pid()})")
        self.run_dir.mkdir(parents=True, exist_ok=True)
        # Before there is a process: an interrupt may come between its start and its record.
        self._token = token = secrets.token_hex(16)
        full = list(command)
        if die_with_parent:
            full = [
                sys.executable,
                "-S",
                "-E",
                str(_LAUNCHER),
                str(os.getpid()),
                str(int(signal.SIGKILL)),
                *full,
            ]
        with self.log_path.open("ab") as log:
            try:
                child = subprocess.Popen(
                    full,
                    env={**env, TOKEN_VARIABLE: token},
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ProcessFailed(f"{self.name} cannot be started: {error}") from error
        self._child = child
        ticks = start_ticks(child.pid)
        self._write(
            ProcessRecord(
                pid=child.pid, start_ticks=ticks or 0, boot_id=boot_id(), token=token, command=list(command)
            )
        )

    def _write(self, record: ProcessRecord) -> None:
        scratch = self.record_path.with_suffix(".tmp")
        scratch.write_text(json.dumps(asdict(record), indent=1))
        scratch.replace(self.record_path)

    def record(self) -> ProcessRecord | None:
        """The record of the last start that was not stopped; None without one, or of an earlier boot."""
        try:
            record = ProcessRecord(**json.loads(self.record_path.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return record if record.boot_id == boot_id() else None

    def pid(self) -> int | None:
        """The process id while it runs."""
        record = self.record()
        if record is None:
            return None
        if self._child is not None and self._child.pid == record.pid and self._child.poll() is not None:
            return None
        ticks = start_ticks(record.pid)
        return record.pid if ticks is not None and ticks == record.start_ticks else None

    def alive(self) -> bool:
        """Whether the program itself (not merely a descendant) runs."""
        return self.pid() is not None

    def exit_code(self) -> int | None:
        """What it ended with, known only to the instance that started it; negative for a signal."""
        return self._child.poll() if self._child is not None else None

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal to the program; False when it does not run."""
        pid = self.pid()
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def halt(self) -> None:
        """SIGSTOP, until SIGCONT; returns when none of its threads runs any more, for `kill` returns before
        that. ProcessFailed when it does not run, or does not stand still.
        """
        pid = self.pid()
        if pid is None or not self.send(signal.SIGSTOP):
            raise ProcessFailed(f"{self.name} does not run")
        if not wait_for(lambda: thread_states(pid) == {"T"}, KILL_SECONDS_MAX):
            raise ProcessFailed(f"{self.name} (process {pid}) does not stand still")

    def wait_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        """Waits until `ready` holds; ProcessFailed when the program ends before that or the time is over."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.alive():
                raise ProcessFailed(f"{self.name} ended (exit code {self.exit_code()}):\n{self.log_tail()}")
            if time.monotonic() >= deadline:
                raise ProcessFailed(f"{self.name} is not ready after {seconds:g} s:\n{self.log_tail()}")
            time.sleep(POLL_SECONDS)

    def stop(self, seconds: float = 10.0, number: signal.Signals = signal.SIGTERM) -> None:
        """Asks it to end, kills it after `seconds`, then kills every descendant that is left."""
        if self.send(number):
            wait_for(lambda: not self.alive(), seconds)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the program and all its descendants, at once; ProcessFailed when one survives it."""
        record = self.record()
        self.send(signal.SIGKILL)
        if self._child is not None and self._child.poll() is None:
            # An interrupt came before the record; and the sweep passes over who is becoming another program
            # at that moment, for the kernel shows no environment then.
            self._child.kill()
        if token := record.token if record is not None else self._token:
            self._sweep(token)
        if record is not None and not wait_for(lambda: not self.alive(), KILL_SECONDS_MAX):
            raise ProcessFailed(f"{self.name} (process {record.pid}) survives SIGKILL")
        if self._child is not None:
            self._reap(self._child)
        self.record_path.unlink(missing_ok=True)
        self._token = ""

    def _reap(self, child: subprocess.Popen[bytes]) -> None:
        try:
            child.wait(KILL_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            if start_ticks(child.pid) is not None:
                raise ProcessFailed(f"{self.name} (process {child.pid}) survives SIGKILL") from None
            # A signal in the midst of an earlier look keeps subprocess from ever looking again.
            child.returncode = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])

    def _sweep(self, token: str) -> None:
        for _ in range(SWEEPS_MAX):
            left = list(carriers(token))
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if not left:
                return
            wait_for(lambda pids=left: all(start_ticks(pid) is None for pid in pids), 1.0)  # type: ignore[misc]
        raise ProcessFailed(f"{self.name} leaves processes that survive SIGKILL: {left}")

    def log_tail(self) -> str:
        """The end of its log."""
        try:
            data = self.log_path.read_bytes()[-LOG_TAIL_CHARACTERS:]
        except OSError:
            return "(no log)"
        return data.decode(errors="replace")
