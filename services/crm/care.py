"""Care: which occasions a rule sees for a customer, and the words for them. Pure.

1. A rule looks at one kind of thing (birthdays, contracts, balances, allowances, churn, silence) and raises
   one task for each *occasion*: this year's birthday, that contract's end. The task's id follows from rule,
   customer and occasion, so that an occasion is never raised twice, however often the rules run. What a
   merge brought a customer stays the occasion of whose it is (`own`).
2. Days are those of the customer's own time zone. A birthday on 29 February is kept on 28 February in other
   years.
3. A task says when it falls due and when it is stale; a stale one expires by itself.
"""

from __future__ import annotations

import calendar
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from crm.model import Customer, Tier

TITLE_CHARACTERS_MAX = 100
TEXT_CHARACTERS_MAX = 300
DAYS_MAX = 366
OUTCOME_CHARACTERS_MAX = 500
RULES_MAX = 200
_DAY_MS = 86_400_000

TRIGGERS = ("BIRTHDAY", "CONTRACT_EXPIRES", "LOW_BALANCE", "UNUSED_ALLOWANCE", "CHURN", "SILENCE")
_TIERS = [tier.value for tier in Tier]
#: What an agent reads when the rule brings no words of its own.
_WORDS: Mapping[str, tuple[str, str]] = {
    "BIRTHDAY": ("{name}生日{date}，请送上祝福", "Birthday on {date}: congratulate {name}"),
    "CONTRACT_EXPIRES": ("合约“{value}”将于{date}到期", 'Contract "{value}" ends on {date}'),
    "LOW_BALANCE": ("余额仅剩{value}，请提醒充值", "Balance down to {value}: remind of topping up"),
    "UNUSED_ALLOWANCE": ("{value}未用完，{date}清零", "{value} unused, lost on {date}"),
    "CHURN": ("流失风险{value}，请关怀挽留", "Churn risk {value}: take care"),
    "SILENCE": ("已{value}天未联系", "Nothing heard for {value} days"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """When a care task is to be raised."""

    #: Last part of its name.
    id: str
    #: What people call it.
    title: str
    #: One of `TRIGGERS`.
    trigger: str
    #: Days before, or of silence.
    days_before: int = 0
    #: Amount or share, by trigger.
    threshold: float = 0.0
    #: Only for this tier and above; "" for all.
    tier_min: str = ""
    #: Words by language.
    texts: Mapping[str, str] = field(default_factory=dict)
    #: It raises tasks.
    enabled: bool = True


#: Rules that a new installation begins with; an operator changes or disables them.
DEFAULTS = (
    Rule(id="birthday", title="生日关怀", trigger="BIRTHDAY", days_before=3),
    Rule(id="contract-expires", title="合约到期", trigger="CONTRACT_EXPIRES", days_before=30),
    Rule(id="low-balance", title="余额不足", trigger="LOW_BALANCE", threshold=10.0),
    Rule(
        id="unused-allowance",
        title="月末余量",
        trigger="UNUSED_ALLOWANCE",
        days_before=5,
        threshold=0.5,
    ),
    Rule(id="churn", title="流失预警", trigger="CHURN", threshold=0.75),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Occasion:
    """One reason for one task."""

    #: What makes it one, beside rule and customer.
    key: str
    #: When it falls due, business ms.
    due_ms: int
    #: When it is stale, business ms.
    ends_ms: int
    #: What the words name.
    value: str = ""
    #: Id of the merged customer whose it is; "" the one's who is asked about.
    own: str = ""


def applies(rule: Rule, customer: Customer) -> bool:
    """Whether the rule is for this customer at all."""
    return not rule.tier_min or _TIERS.index(customer.tier.value) >= _TIERS.index(rule.tier_min)


def birthdays(now: datetime, days: int) -> list[str]:
    """The "MM-DD" of today and so many days ahead, a day to either side for other time zones (rule 2)."""
    first = now.date() - timedelta(days=1)
    found = [first + timedelta(days=n) for n in range(min(days, DAYS_MAX) + 3)]
    keys = {f"{day.month:02}-{day.day:02}" for day in found}
    return sorted(keys | {"02-29"} if "02-28" in keys else keys)


def birthday(rule: Rule, customer: Customer, now: datetime, zone: str) -> Occasion | None:
    """The birthday that comes within the rule's days."""
    born = customer.birth_date
    if born is None:
        return None
    place = zoneinfo.ZoneInfo(customer.time_zone or zone)
    today = now.astimezone(place).date()
    for year in (today.year, today.year + 1):
        leap = born.month == 2 and born.day == 29 and not calendar.isleap(year)
        day = date(year, born.month, 28 if leap else born.day)
        if 0 <= (day - today).days <= rule.days_before:
            due_ms = _start_ms(day, place)
            return Occasion(key=f"{day:%Y-%m-%d}", due_ms=due_ms, ends_ms=due_ms + _DAY_MS)
    return None


def contract_end(rule: Rule, contract: Mapping[str, Any], now_ms: int) -> Occasion | None:
    """A contract that ends within the rule's days and does not renew itself."""
    end_ms = contract.get("end_ms")
    if end_ms is None or contract.get("auto_renew") or contract.get("state", "ACTIVE") != "ACTIVE":
        return None
    if not now_ms <= end_ms <= now_ms + rule.days_before * _DAY_MS:
        return None
    title = contract.get("title") or contract.get("product") or ""
    return Occasion(
        key=f"{contract['_id']}@{end_ms}",
        due_ms=end_ms,
        ends_ms=end_ms,
        value=title,
        own=contract.get("own") or "",
    )


def low_balance(rule: Rule, contract: Mapping[str, Any], now: datetime) -> Occasion | None:
    """A prepaid balance below the threshold: once a month."""
    balance = contract.get("balance_value")
    if balance is None or balance >= rule.threshold or contract.get("state", "ACTIVE") != "ACTIVE":
        return None
    now_ms = _ms(now)
    money = contract.get("balance") or {}
    value = f"{money.get('amount', balance)} {money.get('currency', '')}".strip()
    return Occasion(
        key=f"{contract['_id']}@{now:%Y-%m}",
        due_ms=now_ms,
        ends_ms=now_ms + 30 * _DAY_MS,
        value=value,
        own=contract.get("own") or "",
    )


def unused(rule: Rule, usage: Mapping[str, Any], now_ms: int) -> Occasion | None:
    """An allowance of which less than the threshold's share is used within the rule's days of its end."""
    end_ms, allowance = usage["end_ms"], usage.get("allowance") or 0.0
    if not allowance or usage.get("quantity", 0.0) >= rule.threshold * allowance:
        return None
    if not now_ms <= end_ms <= now_ms + rule.days_before * _DAY_MS:
        return None
    left = allowance - usage.get("quantity", 0.0)
    return Occasion(
        key=f"{usage['metric']}@{end_ms}",
        due_ms=end_ms,
        ends_ms=end_ms,
        value=f"{usage['metric']} {left:g}",
        own=usage.get("own") or "",
    )


def churning(rule: Rule, score: float, now: datetime) -> Occasion | None:
    """A churn score above the threshold: once a month."""
    if score <= rule.threshold:
        return None
    now_ms = _ms(now)
    return Occasion(key=f"{now:%Y-%m}", due_ms=now_ms, ends_ms=now_ms + 30 * _DAY_MS, value=f"{score:.0%}")


def silent(rule: Rule, last_ms: int, now: datetime) -> Occasion | None:
    """Nothing heard for the rule's days; `last_ms` is the last contact, or the customer's creation."""
    days = (_ms(now) - last_ms) // _DAY_MS
    if rule.days_before <= 0 or days < rule.days_before:
        return None
    now_ms = _ms(now)
    return Occasion(key=str(last_ms), due_ms=now_ms, ends_ms=now_ms + 30 * _DAY_MS, value=str(days))


def words(rule: Rule, occasion: Occasion, customer: Customer, language: str, zone: str) -> str:
    """One line for the agent."""
    zh, en = _WORDS[rule.trigger]
    pattern = rule.texts.get(language) or (zh if language == "zh" else en)
    place = zoneinfo.ZoneInfo(customer.time_zone or zone)
    day = datetime.fromtimestamp(occasion.due_ms / 1000, tz=UTC).astimezone(place).date()
    filled = pattern
    # Replaced one by one: a rule's words are an operator's, and no format string.
    for mark, value in (
        ("{name}", customer.display_name),
        ("{date}", day.isoformat()),
        ("{value}", occasion.value),
    ):
        filled = filled.replace(mark, value)
    return filled[:TEXT_CHARACTERS_MAX]


def _start_ms(day: date, place: zoneinfo.ZoneInfo) -> int:
    return _ms(datetime.combine(day, datetime.min.time(), tzinfo=place))


def _ms(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
