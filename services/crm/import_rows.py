"""Rows that are no customers: contracts, usage, interactions, each applied as its API call would."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from chassis.clock import to_ms
from chassis.errors import InvalidArgument
from crm import rows
from crm.care_handlers import Contracts
from crm.handlers import Recorder, Recording
from crm.imports import ApplyRow
from crm.model import InteractionKind
from crm.rows import BadRow

_RECORDED: dict[str, InteractionKind] = {
    str(kind.value): kind for kind in InteractionKind if kind.value in ("MESSAGE", "SURVEY", "VISIT", "NOTE")
}


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else rows.as_text(name, value)


def _number(row: Mapping[str, Any], name: str) -> float:
    return rows.number(name, row.get(name) or 0)


def _whole(row: Mapping[str, Any], name: str) -> int:
    found = _number(row, name)
    if not found.is_integer():
        raise BadRow(field=name, why="must be a whole number")
    return int(found)


def _moment_ms(row: Mapping[str, Any], name: str) -> int | None:
    text = _text(row, name).strip()
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        # In UTC it may lie before the year 1 or after 9999.
        return to_ms((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC))
    except (ValueError, OverflowError):
        raise BadRow(field=name, why="must be a time such as 2026-03-01T08:00:00Z") from None


def _money(row: Mapping[str, Any], name: str) -> dict[str, str] | None:
    amount = _text(row, f"{name}.amount")
    return {"currency": _text(row, f"{name}.currency_code"), "amount": amount} if amount else None


def _customer(row: Mapping[str, Any]) -> str:
    id = _text(row, "customer").removeprefix("customers/")
    if not id:
        raise BadRow(field="customer", why="must be set")
    return id


def _contract(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "product": _text(row, "product"),
        "title": _text(row, "title"),
        "state": _text(row, "state").removeprefix("STATE_") or "ACTIVE",
        "start_ms": _moment_ms(row, "start_time"),
        "end_ms": _moment_ms(row, "end_time"),
        "auto_renew": rows.flag("auto_renew", row.get("auto_renew") or ""),
        "price": _money(row, "monthly_price"),
        "allowances": [],
        "partner": _text(row, "partner"),
        "balance": _money(row, "balance"),
    }


def _usage(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "customer": _customer(row),
        "contract": _text(row, "contract"),
        "metric": _text(row, "metric"),
        "start_ms": _moment_ms(row, "period.start_time"),
        "end_ms": _moment_ms(row, "period.end_time"),
        "quantity": _number(row, "quantity"),
        "allowance": _number(row, "allowance"),
    }


def _recording(row: Mapping[str, Any], row_id: str) -> Recording:
    kind = _RECORDED.get(_text(row, "kind").upper().removeprefix("INTERACTION_KIND_"))
    if kind is None:
        raise BadRow(field="kind", why=f"must be one of {', '.join(_RECORDED)}")
    values: dict[str, Any] = {
        name: _text(row, name)
        for name in ("summary", "contact_reason", "agent", "region", "product", "partner")
    }
    if kind is InteractionKind.SURVEY:
        values |= {"comment": _text(row, "text"), "satisfaction": _whole(row, "satisfaction")}
        values |= {"call_id": _text(row, "call_id"), "survey": _text(row, "survey")}
    else:
        values["text"] = _text(row, "text")
    return Recording(
        kind=kind,
        source=_text(row, "source") or "import",
        source_id=_text(row, "source_id") or row_id,
        values=values,
        customer=_text(row, "customer").removeprefix("customers/"),
        number=_text(row, "phone_number"),
        began_ms=_moment_ms(row, "start_time"),
    )


def appliers(contracts: Contracts, recorder: Recorder) -> dict[str, ApplyRow]:
    """By row kind."""

    def contract(row: Mapping[str, Any], row_id: str, dry: bool, actor: str) -> str:
        wanted, customer, id = _contract(row), _customer(row), _text(row, "contract_id") or row_id
        if dry:
            return contracts.check(customer, id, wanted)
        contracts.create(customer, id, wanted, row_id)
        return ""

    def usage(row: Mapping[str, Any], row_id: str, dry: bool, actor: str) -> str:
        _, failures = contracts.record_usage([_usage(row)], dry=dry)
        if failures:
            raise InvalidArgument(field=failures[0].field, why=failures[0].why)
        return ""

    def interaction(row: Mapping[str, Any], row_id: str, dry: bool, actor: str) -> str:
        recorder.record(_recording(row, row_id), actor, dry=dry)
        return ""

    return {"CONTRACT": contract, "USAGE": usage, "INTERACTION": interaction}
