"""Errors in Chinese and English: what a header prefers, that nothing lacks a text, what travels."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from string import Formatter

import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from chassis import localize
from chassis.config import ServiceSettings
from chassis.errors import InvalidArgument, NotFound, ResourceExhausted
from chassis.grpc_status import DETAILS_BYTES_MAX, rich_status
from crm.config import CrmSettings
from marketing.config import MarketingSettings
from routing.config import RoutingSettings
from routing.planning.dialler_config import DiallerSettings
from tickets.config import TicketsSettings

SERVICES = Path(__file__).resolve().parents[3] / "services"
PACKAGES = ("chassis", "routing", "crm", "tickets", "marketing")
#: What a value or a name in a Chinese text never is: a piece of the English sentence that was left standing.
_ENGLISH = re.compile(r"\b(?:got|or|and|the|of|at|most|an|is|are|not|with|for|to|in|by)\b")
#: What is to be typed as it stands: a word of the rule language.
_CODE = re.compile(r'"[^"]*"')
_CLASS = re.compile(r"^class (\w+)\(([\w., ]+)\):", re.M)


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, None),
        ("", "en"),
        ("zh", "zh"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB, zh;q=0.9", "en"),
        ("en;q=0.3, zh-TW;q=0.7", "zh"),
        ("fr, de;q=0.9, zh;q=0.1", "zh"),
        ("fr, de", "en"),
        ("zh;q=0", "en"),
        ("zh;q=0, *", "en"),
        ("*;q=0.5, zh;q=0.4", "en"),
        ("zh;q=0.5, *;q=0.4", "zh"),
        ("ZH-hans-cn ; q=0.8 , EN;q=0.200", "zh"),
        ("zh;q=2, en;q=0.5", "en"),
        (";;;,,q=1,\x00", "en"),
        ("en, zh", "en"),
        ("zh, en", "zh"),
        ("x" * 100_000, "en"),
    ],
)
def test_the_dearest_language_is_taken(header: str | None, language: str | None) -> None:
    assert localize.preferred(header) == language


@functools.cache
def error_classes() -> dict[tuple[str, str], str]:
    """(package, class) -> English template, of every error that the code defines, read without importing."""
    sources = {path: path.read_text() for p in PACKAGES for path in (SERVICES / p).rglob("*.py")}
    found = {(path, name): bases for path, text in sources.items() for name, bases in _CLASS.findall(text)}
    names = {"CallmeshError"}
    while True:
        more = {
            name
            for (_, name), bases in found.items()
            if any(base.strip().rpartition(".")[2] in names for base in bases.split(","))
        }
        if more <= names:
            break
        names |= more
    classes = {}
    for path in {path for path, name in found if name in names} | {SERVICES / "chassis" / "errors.py"}:
        if "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(sources[path])):
            # Another class may have the name of an error, so its own bases decide.
            ours = isinstance(node, ast.ClassDef) and (
                node.name == "CallmeshError"
                or {ast.unparse(b).rpartition(".")[2] for b in node.bases} & names
            )
            if ours and (doc := ast.get_docstring(node)):
                package = path.relative_to(SERVICES).parts[0]
                classes[package, node.name] = " ".join(doc.split("\n\n", 1)[0].split())
    return classes


def placeholders(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def test_every_error_has_a_chinese_text_with_the_same_values() -> None:
    classes = error_classes()
    assert len(classes) > 130
    wrong = []
    for (package, name), english in classes.items():
        chinese = localize.texts_of(package).errors.get(name)
        if chinese is None or not re.search("[\u3000-\u9fff\uff00-\uffef]", chinese):
            wrong.append(f"{package}.{name} has no Chinese text in {package}/{localize.FILE}")
        elif placeholders(chinese) != placeholders(english):
            wrong.append(f"{package}.{name}: {english!r} and {chinese!r} have other values")
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_sentence_keeps_its_values(package: str) -> None:
    sentences = localize.texts_of(package).sentences
    assert sentences
    for english, chinese in sentences.items():
        count = english.count("{}")
        assert placeholders(chinese) == {str(n) for n in range(count)}, (english, chinese)


def texts(node: ast.expr) -> list[str]:
    """What an expression says, with "v" where a value stands; each way of a choice."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        parts = ["v" if isinstance(part, ast.FormattedValue) else texts(part)[0] for part in node.values]
        return ["".join(parts)]
    return texts(node.body) + texts(node.orelse) if isinstance(node, ast.IfExp) else []


def findings(node: ast.AST) -> list[ast.expr]:
    """What a line of code says is wrong: an error's `why` or `limit`, and the second half of what is added to
    a list of bad fields, `found.append((field, why))` or `problems.add(field, why)`, yielded to one, or
    stands in a function that makes one. A rule's problem is the last of what it is made of.
    """
    pair = node.value if isinstance(node, ast.Yield) else None
    said: list[ast.expr] = []
    if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) == "list[Problem]":
        tuples = [each for each in ast.walk(node) if isinstance(each, ast.Tuple) and len(each.elts) == 2]
        said = [each.elts[1] for each in tuples if isinstance(each.elts[1], ast.Constant | ast.JoinedStr)]
    if isinstance(node, ast.Call):
        said = [each.value for each in node.keywords if each.arg in ("why", "limit")]
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        plain = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "add" and len(node.args) == 2:
            said.append(node.args[1])
        elif name == "fail" or plain in ("_bad", "_syntax", "BadMoney"):
            said.append(node.args[-1])
        elif name == "append" and node.args:
            pair = node.args[0]
    return [*said, pair.elts[1]] if isinstance(pair, ast.Tuple) and len(pair.elts) == 2 else said


def said_of_errors() -> set[tuple[str, str]]:
    """(package, sentence) of what the code says is wrong where it finds it."""
    said = set()
    for package in PACKAGES:
        for path in (SERVICES / package).rglob("*.py"):
            if "testing" in path.parts:
                continue
            given = (each for node in ast.walk(ast.parse(path.read_text())) for each in findings(node))
            said |= {
                (package, one)
                for each in given
                for one in texts(each)
                if re.search("[a-z]{2} | [a-z]{2}", one)
            }
    return said


def test_what_errors_say_has_a_chinese_text() -> None:
    said = said_of_errors()
    assert len(said) > 400
    chinese = {(p, one): localize.sentence(one, p) for p, one in said}
    english = [
        f"{p}: {one!r} is told as {told!r}"
        for (p, one), told in sorted(chinese.items())
        if not re.search("[\u3000-\u9fff]", told) or _ENGLISH.search(_CODE.sub("", told))
    ]
    assert english == []


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_service_says_in_an_error_of_the_chassis_reaches_the_caller_in_chinese(package: str) -> None:
    for english in localize.texts_of(package).sentences:
        if " " not in english or "{}" in english:
            continue
        error = InvalidArgument(field="a_field", why=english)
        status = rich_status(error, f"callmesh.{package}", "zh-CN", package)
        (told,) = details(status, error_details_pb2.LocalizedMessage)
        (bad,) = details(status, error_details_pb2.BadRequest)
        field = bad.field_violations[0]  # type: ignore[attr-defined]
        for text in (told.message, field.localized_message.message):  # type: ignore[attr-defined]
            assert re.search("[\u3000-\u9fff]", text.removeprefix("a_field：").rstrip("。")), english


def details(status: object, kind: type) -> list[object]:
    found = []
    for packed in status.details:  # type: ignore[attr-defined]
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


def test_a_caller_who_asks_gets_its_language_and_one_error_info() -> None:
    error = InvalidArgument.many([("page_size", "must not be negative, got -1"), ("name", "must be set")])
    plain, chinese = rich_status(error, "callmesh.crm"), rich_status(error, "callmesh.crm", "zh-CN")
    assert details(plain, error_details_pb2.LocalizedMessage) == []
    (told,) = details(chinese, error_details_pb2.LocalizedMessage)
    assert told.locale == "zh-CN"  # type: ignore[attr-defined]
    assert told.message == "page_size：不能为负数，收到 -1（另有 1 处）。"  # type: ignore[attr-defined]
    (bad,) = details(chinese, error_details_pb2.BadRequest)
    fields = [(f.description, f.localized_message.message) for f in bad.field_violations]  # type: ignore[attr-defined]
    assert fields == [
        ("must not be negative, got -1", "不能为负数，收到 -1"),
        ("must be set", "必须填写"),
    ]
    assert len(details(chinese, error_details_pb2.ErrorInfo)) == 1
    # The message for developers and the reason stay what they were.
    assert chinese.message == plain.message
    (english,) = details(rich_status(error, "d", "fr"), error_details_pb2.LocalizedMessage)
    assert (english.locale, english.message) == ("en-US", error.message)  # type: ignore[attr-defined]


def test_what_nobody_translated_stays_in_english_and_braces_are_only_text() -> None:
    assert localize.message(NotFound(resource="customers/{0}"), "zh", "chassis") == "未找到 customers/{0}。"
    assert localize.message(InvalidArgument(field="x", why="is {odd}"), "zh", "chassis") == "x：is {odd}。"
    limit = ResourceExhausted(subject="client:a", limit="at most 5", retry_seconds=1.0)
    assert localize.message(limit, "zh", "chassis") == "已达到上限：client:a，最多 5。"


@pytest.mark.parametrize(
    ("package", "english", "chinese"),
    [
        (
            "chassis",
            "must be at most 200 characters, got 201 (and 1 more)",
            "最多 200 个字符，收到 201 个（另有 1 处）",
        ),
        ("routing", "must be between 1 and 5, got 7", "必须在 1 到 5 之间，收到 7"),
        ("routing", "must be one of low, high (and 2 more)", "必须是以下之一：low, high（另有 2 处）"),
        ("crm", "is too short for a number", "作为电话号码太短"),
        ("marketing", "must be PLAN or ADD_ON", "必须是 PLAN 或 ADD_ON"),
        # What the caller said is no sentence, whatever words are in it.
        (
            "marketing",
            "needs ids of lower-case letters, digits, _ and -: 'no such id'",
            "id 只能包含小写字母、数字、_ 和 -：'no such id'",
        ),
        # Of which only "must be" is known.
        ("crm", "must be lighter than air", "must be lighter than air"),
        ("crm", "must be lighter than air (and 1 more)", "must be lighter than air（另有 1 处）"),
    ],
)
def test_a_sentence_is_translated_whole_or_not_at_all(package: str, english: str, chinese: str) -> None:
    assert localize.sentence(english, package) == chinese


@pytest.mark.parametrize(
    ("settings", "why", "chinese"),
    [
        (CrmSettings, "must be a URL of at most 2000 characters", "必须是最多 2000 个字符的 URL"),
        (MarketingSettings, "needs 1 to 8 phases", "需要 1 到 8 个阶段"),
        (RoutingSettings, "must have 1 to 1000 agents", "必须有 1 到 1000 名坐席"),
        (TicketsSettings, "is required", "必须填写"),
        # It runs the code of routing, under a name of its own.
        (DiallerSettings, "must come first", "必须最先发送"),
    ],
)
def test_a_plain_error_is_told_in_the_words_of_the_server_that_tells_it(
    settings: type[ServiceSettings], why: str, chinese: str
) -> None:
    error = InvalidArgument(field="x", why=why)
    status = rich_status(error, "callmesh.any", "zh", localize.package_of(settings))
    (told,) = details(status, error_details_pb2.LocalizedMessage)
    (bad,) = details(status, error_details_pb2.BadRequest)
    assert told.message == f"x：{chinese}。"  # type: ignore[attr-defined]
    assert bad.field_violations[0].localized_message.message == chinese  # type: ignore[attr-defined]


def test_a_server_of_a_mere_module_has_the_texts_of_the_chassis() -> None:
    assert localize.sentence("must be set", "base64") == "必须填写"


def test_a_localized_status_still_fits_its_trailer() -> None:
    error = InvalidArgument.many([(f"field_{n}", "值" * 190) for n in range(16)])
    status = rich_status(error, "callmesh.crm", "zh")
    assert sum(len(d.value) for d in status.details) <= DETAILS_BYTES_MAX
    assert len(details(status, error_details_pb2.LocalizedMessage)) == 1


def test_a_sentence_whose_value_is_blank_is_told_in_chinese_too():
    assert localize.sentence("contradicts any_tags: ", "marketing") == localize.sentence(
        "contradicts any_tags: x", "marketing"
    ).replace("x", "")
    assert localize.sentence("contradicts any_tags: ", "marketing") != "contradicts any_tags: "
