"""Write docs/settings.md from the settings classes of the four services: name, default, meaning of every setting.

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
SERVICES = ("routing", "crm", "tickets", "marketing")

INTRODUCTION = """# Settings

Made by `make settings-doc` from the settings classes (`services/<service>/config.py`); change those and run it again.

Every setting is an environment variable. A process that finds a bad one prints one line that names it and exits with
status 2. Where two names stand, both are read and the first wins. "-" means that there is no default.
"""


def settings_class(service: str) -> Any:
    """The one subclass of ServiceSettings that `<service>.config` defines.

    Raises:
        LookupError: the module defines none, or several.
    """
    base = importlib.import_module("chassis.config").ServiceSettings
    module = importlib.import_module(f"{service}.config")
    own = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    found = [c for c in own if issubclass(c, base)]
    if len(found) != 1:
        raise LookupError(f"{module.__name__} should define one ServiceSettings, it defines {len(found)}")
    return found[0]


def names(cls: Any, field_name: str, field: Any) -> list[str]:
    """The environment variables that set a field, in the order in which they are looked up."""
    alias = field.validation_alias
    if alias is None:
        return [(cls.model_config.get("env_prefix", "") + field_name).upper()]
    choices = getattr(alias, "choices", [alias])
    return [str(choice).upper() for choice in choices]


def default(field: Any) -> str:
    """The default as a reader would type it."""
    if field.is_required():
        return "-"
    value = field.get_default(call_default_factory=True, validated_data={})
    value = getattr(value, "value", value)
    value = value.get_secret_value() if hasattr(value, "get_secret_value") else value
    return "-" if value in (None, "", (), []) else f"`{value}`"


def table(cls: Any, fields: list[str]) -> str:
    """A Markdown table of some fields of a settings class."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name in fields:
        field = cls.model_fields[name]
        shown = ", ".join(f"`{n}`" for n in names(cls, name, field))
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| {shown} | {default(field)} | {meaning} |")
    return "\n".join(lines)


def document() -> str:
    """The whole file: one section a service, its own settings first, then those that every service has."""
    base = importlib.import_module("chassis.config").ServiceSettings
    parts = [INTRODUCTION]
    for service in SERVICES:
        cls = settings_class(service)
        own = [n for n in cls.model_fields if n not in base.model_fields]
        parts.append(f"## {service}\n")
        if own:
            parts.append(f"Its own:\n\n{table(cls, own)}\n")
        shared = [n for n in cls.model_fields if n in base.model_fields]
        parts.append(f"Those that every service has:\n\n{table(cls, shared)}\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Returns a process exit status."""
    sys.path.insert(0, str(ROOT / "services"))
    text = document()
    if "--check" in arguments:
        if not TARGET.exists() or TARGET.read_text() != text:
            print("docs/settings.md is stale: run `make settings-doc`", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
