"""Logs: structlog, one JSON object a line (or readable on a terminal), with the trace id and without personal
data.

    log = logs.get_logger(__name__)
    log.info("call.placed", call=call_id, region=region)

Names of events are constant; what varies goes into keys. Anything that looks like a telephone number or an
e-mail address is masked on the way out, in libraries' lines and in tracebacks too, but do not rely on it: log
ids, not people.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

import structlog

from chassis import callcontext, telemetry

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

    from chassis.config import ServiceSettings

#: Digits of a telephone number left readable.
DIGITS_SHOWN = 3
#: Longest text of one value in a line, in characters (a traceback is longer than any other).
VALUE_CHARACTERS_MAX = 8000

#: As people write them: a run of digits, an international one with gaps, a Chinese mobile one with gaps.
_NUMBER = re.compile(
    r"(?<![\w.+\-])(?:\+?[0-9]{7,15}(?!\w|\.[0-9])"
    r"|\+[0-9](?:[ ()-]{0,2}[0-9]){7,14}(?!\w)"
    r"|1[3-9][0-9][ -][0-9]{4}[ -][0-9]{4}(?!\w))"
)
#: What stands before the @ may be a name, or a password in a connection string.
_MAIL = re.compile(r"[^\s@\"'<>,;=/:]{1,64}@(?=[\w-]{1,63}(?:\.[\w-]{1,63}){1,8})")
_DIGIT = re.compile(rf"[0-9](?=(?:[^0-9]*[0-9]){{{DIGITS_SHOWN}}})")


def mask_number(number: str) -> str:
    """A telephone number with all but its last three digits starred: "+*** *** 678" from "+861 234 5678" and
    so on.
    """
    return _DIGIT.sub("*", number)


def mask_text(text: str) -> str:
    """`text` with everything masked that looks like a telephone number or an e-mail address."""
    text = _NUMBER.sub(lambda match: mask_number(match.group()), text)
    return _MAIL.sub("***@", text) if "@" in text else text


def _mask(value: Any) -> Any:
    if isinstance(value, str):
        return mask_text(value[:VALUE_CHARACTERS_MAX])
    if isinstance(value, dict):
        return {key: _mask(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(item) for item in value]
    return value


def _mask_line(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    return {key: value if key == "timestamp" else _mask(value) for key, value in line.items()}


def _add_trace(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    traceparent = telemetry.current_traceparent()
    if traceparent is not None:
        line.setdefault("trace_id", traceparent[3:35])
    call = callcontext.current()
    if call is not None:
        line.setdefault("method", call.method)
    return line


def _adder(service: str, instance: str) -> Processor:
    def add(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
        line["service"] = service
        line["instance"] = instance
        return line

    return add


def setup(settings: ServiceSettings, *, stream: Any = None) -> None:
    """Sends structlog's and the standard library's lines to `stream` (stderr), in the settings' format and
    level.
    """
    out = stream or sys.stderr
    readable = settings.log_format == "text" or (settings.log_format == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _adder(settings.service, settings.instance_name()),
        _add_trace,
    ]
    renderer: Processor = (
        # Plain tracebacks: the pretty ones print local variables, and with them personal data.
        structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if readable
        else structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _mask_line,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for noisy in ("pymongo", "urllib3", "asyncio", "amqp", "kombu"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; `name` is the module's."""
    return structlog.stdlib.get_logger(name)


def bind(values: MutableMapping[str, Any]) -> None:
    """Adds keys to every further line of this task or thread."""
    structlog.contextvars.bind_contextvars(**values)
