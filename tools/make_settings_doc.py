"""Write docs/settings.md from the settings classes of the four services and the dialler.

Run as `make settings-doc`; with `--check` nothing is written and a stale file is an error.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "settings.md"
#: Process to the module of its settings class.
SERVICES = {
    **{service: f"{service}.config" for service in ("routing", "crm", "tickets", "marketing")},
    "dialler": "routing.planning.dialler_config",
}

INTRODUCTION = """# Settings

Made by `make settings-doc` from the settings classes (`services/<service>/config.py`, and the dialler's in
`services/routing/planning/dialler_config.py`); change those and run it again.

Every setting is an environment variable. A process that finds a bad one prints one line that names it and
exits with status 2. A variable that begins as its settings do and is none, misspelt perhaps, is named in the
log at the start (`setting.unknown`) and counts for nothing.

[Those of every process](#every-process) come first, told once; then what [routing](#routing), [crm](#crm),
[tickets](#tickets), [marketing](#marketing) and the [dialler](#dialler) have besides, or set otherwise.
"""

EVERY = """## Every process

`<SERVICE>` stands for ROUTING, CRM, TICKETS, MARKETING or DIALLER, as in `CRM_GRPC_PORT`. Where
two names stand, the longer one wins: it is that process's own, the shorter one is read by every process of a
stack.

"""


def settings_class(service: str) -> Any:
    """The one subclass of ServiceSettings that a process's module defines.

    Raises:
        LookupError: the module defines none, or several.
    """
    base = importlib.import_module("chassis.config").ServiceSettings
    module = importlib.import_module(SERVICES[service])
    own = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    found = [c for c in own if issubclass(c, base)]
    if len(found) != 1:
        raise LookupError(f"{module.__name__} should define one ServiceSettings, it defines {len(found)}")
    return found[0]


def document() -> str:
    """The whole file: what every process has, then a section a service."""
    config = importlib.import_module("chassis.config")
    base, table = config.ServiceSettings, config.settings_table
    sections = [f"## {service}\n\n{table(settings_class(service), but=base)}" for service in SERVICES]
    return "\n".join([INTRODUCTION, EVERY + table(base), *sections])


def main(arguments: list[str]) -> int:
    """Returns a process exit status."""
    sys.path.insert(0, str(ROOT / "services"))
    text = document()
    if "--check" not in arguments:
        TARGET.write_text(text)
    elif not TARGET.exists() or TARGET.read_text() != text:
        print("docs/settings.md is stale: run `make settings-doc`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
