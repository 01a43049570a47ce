"""What people may fill in: checks that name every bad field at once, and the gentler repair of what comes
from calls."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from chassis.errors import FieldViolation, InvalidArgument
from tickets.model import Dispatch, Draft, FeeLine, PartLine, SurveyAnswer

#: Longest subject, in characters.
SUBJECT_CHARACTERS_MAX = 200
#: Longest description or resolution, in bytes of UTF-8.
TEXT_BYTES_MAX = 65_536
#: Longest reason of a transition, in characters.
REASON_CHARACTERS_MAX = 1_024
#: Longest category, tag, skill or attribute key, in characters.
LABEL_CHARACTERS_MAX = 64
#: Longest attribute value, in characters.
VALUE_CHARACTERS_MAX = 1_024
#: Longest note of a call kept on a ticket, in characters.
NOTES_CHARACTERS_MAX = 4_096
#: Most tags, skills, attributes, assets, products.
TAGS_MAX, SKILLS_MAX, ATTRIBUTES_MAX, ASSETS_MAX, PRODUCTS_MAX = 32, 16, 64, 32, 32

#: Most lines of a fee order, of a parts request, of a dispatch order's parts, of a survey.
FEE_LINES_MAX, PARTS_MAX, DISPATCH_PARTS_MAX, SURVEY_MAX = 200, 200, 64, 100
#: Most of one part or fee.
QUANTITY_MAX = 1_000_000

_ID = re.compile(r"[A-Za-z0-9._~:-]{1,128}")
_NUMBER = re.compile(r"\+[1-9][0-9]{4,14}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8}){0,4}")
_LABEL = re.compile(r"[\w][\w ./:+-]*")

#: Control characters and lone surrogates; zero-width joiners (emoji, Indic scripts) are fine.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
#: The same but for tab and line breaks.
_TEXT_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def line_problem(text: str, maximum: int) -> str | None:
    """What is wrong with a single line of at most `maximum` characters; None when nothing is."""
    if len(text) > maximum:
        return f"must be at most {maximum} characters, got {len(text)}"
    return "must not hold control characters" if _CONTROL.search(text) else None


def text_problem(text: str) -> str | None:
    """What is wrong with a text of at most `TEXT_BYTES_MAX` bytes; None when nothing is."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > TEXT_BYTES_MAX:
        return f"must be at most {TEXT_BYTES_MAX} bytes in UTF-8, got {size}"
    return "must not hold control characters but tab and line breaks" if _TEXT_CONTROL.search(text) else None


def label_problem(text: str) -> str | None:
    """What is wrong with a label (category, tag, skill, key); None when nothing is."""
    if len(text) > LABEL_CHARACTERS_MAX:
        return f"must be at most {LABEL_CHARACTERS_MAX} characters, got {len(text)}"
    return None if _LABEL.fullmatch(text) else "must be words of letters, digits and _ . / : + -"


def _each(field: str, values: Iterable[str], maximum: int) -> list[tuple[str, str | None]]:
    values = tuple(values)
    found: list[tuple[str, str | None]] = []
    if len(values) > maximum:
        return [(field, f"holds {len(values)} entries, at most {maximum} are allowed")]
    if len(set(values)) != len(values):
        found.append((field, "holds an entry twice"))
    return found + [(f"{field}[{index}]", label_problem(value)) for index, value in enumerate(values)]


def _names(
    field: str, values: tuple[str, ...], maximum: int, pattern: re.Pattern[str], form: str
) -> list[tuple[str, str | None]]:
    if len(values) > maximum:
        return [(field, f"holds {len(values)} entries, at most {maximum} are allowed")]
    return [
        (f"{field}[{index}]", None if pattern.fullmatch(value) else f"must have the form {form}")
        for index, value in enumerate(values)
    ]


_ASSET = re.compile(r"assets/" + _ID.pattern)


def _attributes(attributes: Mapping[str, str]) -> list[tuple[str, str | None]]:
    if len(attributes) > ATTRIBUTES_MAX:
        return [("attributes", f"holds {len(attributes)} keys, at most {ATTRIBUTES_MAX} are allowed")]
    found: list[tuple[str, str | None]] = []
    for key, value in attributes.items():
        found.append(("attributes", label_problem(key) and f"key {key[:64]!r} {label_problem(key)}"))
        found.append((f"attributes[{key[:64]}]", line_problem(value, VALUE_CHARACTERS_MAX)))
    return found


_CURRENCY = re.compile(r"[A-Z]{3}")
_AMOUNT = re.compile(r"[0-9]{1,18}(\.[0-9]{1,6})?")
_AGENT = re.compile(r"agents/" + _ID.pattern)


def _part_lines(field: str, lines: tuple[PartLine, ...], maximum: int) -> list[tuple[str, str | None]]:
    if len(lines) > maximum:
        return [(field, f"holds {len(lines)} entries, at most {maximum} are allowed")]
    found: list[tuple[str, str | None]] = []
    for index, line in enumerate(lines):
        name = f"{field}[{index}]"
        number = line_problem(line.number, 64) if line.number.strip() else "must not be empty"
        found.append((f"{name}.part_number", number))
        found.append((f"{name}.quantity", _quantity(line.quantity)))
        found.append((f"{name}.description", line_problem(line.description, 256)))
    return found


def _quantity(value: int) -> str | None:
    return None if 1 <= value <= QUANTITY_MAX else f"must be 1 to {QUANTITY_MAX}, got {value}"


def _dispatch(order: Dispatch) -> list[tuple[str, str | None]]:
    placed = order.latitude is not None and order.longitude is not None
    off = placed and not (-90 <= (order.latitude or 0) <= 90 and -180 <= (order.longitude or 0) <= 180)
    turned = order.start_ms is not None and order.end_ms is not None and order.end_ms <= order.start_ms
    return [
        ("dispatch.site_address", line_problem(order.address, 512)),
        ("dispatch.site_location", "is not on the earth" if off else None),
        ("dispatch.appointment", "must end after it starts" if turned else None),
        ("dispatch.engineer", _optional(order.engineer, _AGENT, "must have the form agents/{agent}")),
        ("dispatch.site_contact", line_problem(order.contact, 256)),
        *_part_lines("dispatch.parts", order.parts, DISPATCH_PARTS_MAX),
    ]


def _amount(line: FeeLine) -> str | None:
    if line.amount.startswith("-"):
        return "must not be negative"
    if not _AMOUNT.fullmatch(line.amount):
        return "must be a decimal number with at most 18 digits before and 6 after the point"
    return None


def _fee(lines: tuple[FeeLine, ...]) -> list[tuple[str, str | None]]:
    if len(lines) > FEE_LINES_MAX:
        return [("fee.lines", f"holds {len(lines)} entries, at most {FEE_LINES_MAX} are allowed")]
    found: list[tuple[str, str | None]] = []
    for index, line in enumerate(lines):
        name = f"fee.lines[{index}]"
        currency = None if _CURRENCY.fullmatch(line.currency) else "must be an ISO 4217 code, for example CNY"
        found.append((f"{name}.description", line_problem(line.description, 256)))
        found.append((f"{name}.quantity", _quantity(line.quantity)))
        found.append((f"{name}.unit_amount.currency_code", currency))
        found.append((f"{name}.unit_amount.amount", _amount(line)))
    if len({line.currency for line in lines}) > 1:
        found.append(("fee.lines", "must all have one currency"))
    return found


def _survey(answers: tuple[SurveyAnswer, ...]) -> list[tuple[str, str | None]]:
    if len(answers) > SURVEY_MAX:
        return [("survey", f"holds {len(answers)} entries, at most {SURVEY_MAX} are allowed")]
    found: list[tuple[str, str | None]] = []
    for index, answer in enumerate(answers):
        found.append((f"survey[{index}].question_id", label_problem(answer.question_id)))
        found.append((f"survey[{index}].question", line_problem(answer.question, 1_024)))
        found.append((f"survey[{index}].answer", line_problem(answer.answer, 4_096)))
    if len({answer.question_id for answer in answers}) < len(answers):
        found.append(("survey", "holds a question twice"))
    return found


def _subject(subject: str) -> str | None:
    return line_problem(subject, SUBJECT_CHARACTERS_MAX) if subject.strip() else "must not be empty"


def _optional(value: str, pattern: re.Pattern[str], why: str) -> str | None:
    return None if not value or pattern.fullmatch(value) else why


def check_draft(draft: Draft, prefix: str = "ticket.") -> None:
    """InvalidArgument with one violation for every bad field, named `prefix` + field; nothing when all is
    well."""
    checks: list[tuple[str, str | None]] = [
        ("subject", _subject(draft.subject)),
        ("description", text_problem(draft.description)),
        ("category", label_problem(draft.category) if draft.category else None),
        ("customer", _optional(draft.customer_id, _ID, "must have the form customers/{customer}")),
        (
            "caller_number",
            _optional(draft.caller_number, _NUMBER, "must be E.164, for example +8613800138000"),
        ),
        ("language", _optional(draft.language, _LANGUAGE, "must be a BCP 47 tag, for example zh-CN")),
        *_each("required_skills", draft.required_skills, SKILLS_MAX),
        *_each("tags", draft.tags, TAGS_MAX),
        *_attributes(draft.attributes),
        *_names("assets", draft.assets, ASSETS_MAX, _ASSET, "assets/{asset}"),
        *_names(
            "products",
            draft.products,
            PRODUCTS_MAX,
            re.compile(r"[^\x00-\x1f\x7f]{1,160}"),
            "1 to 160 characters",
        ),
        *(_dispatch(draft.dispatch) if draft.dispatch is not None else ()),
        *_fee(draft.fee),
        *_part_lines("parts", draft.parts, PARTS_MAX),
        *_survey(draft.survey),
    ]
    found = [FieldViolation(field=prefix + field, description=why) for field, why in checks if why]
    if found:
        raise InvalidArgument.many(found)


def check_request_texts(*, reason: str, resolution: str, score: int, scored: bool) -> None:
    """The texts of a transition; InvalidArgument naming each bad field. `scored`: the transition is a
    verdict."""
    checks = [
        ("reason", line_or_text(reason)),
        ("resolution", text_problem(resolution)),
        ("satisfaction_score", _score_problem(score, scored)),
    ]
    found = [FieldViolation(field=field, description=why) for field, why in checks if why]
    if found:
        raise InvalidArgument.many(found)


def line_or_text(reason: str) -> str | None:
    """What is wrong with a reason; line breaks are fine in it."""
    if len(reason) > REASON_CHARACTERS_MAX:
        return f"must be at most {REASON_CHARACTERS_MAX} characters, got {len(reason)}"
    return text_problem(reason)


def _score_problem(score: int, scored: bool) -> str | None:
    if not 0 <= score <= 5:
        return f"must be 1 to 5, or 0 when not given, got {score}"
    return "only a return visit's verdict has a score" if score and not scored else None


def clean_line(text: str, maximum: int) -> str:
    """The nearest valid line: blanks for control characters, cut to `maximum` characters, outer blanks
    gone."""
    return _CONTROL.sub(" ", text[: maximum * 2]).strip()[:maximum].rstrip()


def clean_text(text: str, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """The nearest valid text, cut to `bytes_max` bytes of UTF-8 between characters."""
    cut = text[:bytes_max].encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore")
    return _TEXT_CONTROL.sub(" ", cut)


def clean_label(text: str) -> str:
    """`text` if it is a valid label, else what of it is: other characters become `-`; empty when nothing is
    left."""
    if not text or label_problem(text) is None:
        return text
    return re.sub(r"[^\w ./:+-]", "-", text[:LABEL_CHARACTERS_MAX]).strip(" ./:+-")


def clean_id(text: str) -> str:
    """`text` if it is a valid id, else empty."""
    return text if _ID.fullmatch(text) else ""


def clean_number(text: str) -> str:
    """`text` if it is E.164, else empty: a withheld or foreign-format number cannot be matched by anyway."""
    return text if _NUMBER.fullmatch(text) else ""
