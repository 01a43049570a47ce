"""Run every benchmark, the simulation, or the chaos tests: `python tools/run_all.py bench|simulation|chaos`.

Behind `make bench`, `make sim` and `make chaos`. Each program prints its own table, writes
build/reports/<name>.json and exits non-zero when it misses one of its own limits; this runs all of them to
the end and exits non-zero if any did.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def benchmarks() -> list[list[str]]:
    """One command for each runnable module of bench/."""
    return _programs("bench")


def chaos() -> list[list[str]]:
    """One command for each runnable module of bench/chaos/."""
    return _programs("bench/chaos")


def _programs(folder: str) -> list[list[str]]:
    modules = sorted((ROOT / folder).glob("*.py"))
    package = folder.replace("/", ".")
    return [[f"{package}.{m.stem}"] for m in modules if '__name__ == "__main__"' in m.read_text()]


def tests(folder: str) -> list[list[str]]:
    """One pytest command for tests/<folder>, none where it holds no test."""
    found = any((ROOT / "tests" / folder).rglob("test_*.py"))
    return [["pytest", f"tests/{folder}"]] if found else []


def simulation() -> list[list[str]]:
    """The simulation's own program: many seeds, RUNS= and SEED= from the environment."""
    return [["tests/simulation/__main__.py"]]


def run(commands: list[list[str]]) -> int:
    """Run each to its end; 1 when any failed."""
    path = os.pathsep.join([str(ROOT / "services"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    failed = []
    for command in commands:
        arguments = command if command[0].endswith(".py") else ["-m", *command]
        print(f"== python {' '.join(arguments)}", flush=True)
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | {"PYTHONPATH": path})
        if done.returncode != 0:
            failed.append(f"{' '.join(command)} (exit {done.returncode})")
    for line in failed:
        print(f"failed: {line}")
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    """Returns a process exit status."""
    kinds = {"bench": benchmarks, "simulation": simulation, "chaos": chaos}
    if len(arguments) != 1 or arguments[0] not in kinds:
        print(f"usage: run_all.py {'|'.join(kinds)}", file=sys.stderr)
        return 2
    commands = kinds[arguments[0]]()
    if not commands:
        print(f"{arguments[0]}: there is none in this version")
    return run(commands)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
