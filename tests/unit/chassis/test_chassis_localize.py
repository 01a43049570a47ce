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
from chassis.errors import InvalidArgument, NotFound, ResourceExhausted
from chassis.grpc_status import DETAILS_BYTES_MAX, rich_status

SERVICES = Path(__file__).resolve().parents[3] / "services"
PACKAGES = ("chassis", "routing", "crm", "tickets", "marketing")
#: Sentences that may wait for somebody who writes Chinese; the caller is told them in English meanwhile.
UNTRANSLATED_MAX = 10
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


def said_of_errors() -> set[tuple[str, str]]:
    """(package, sentence) of what the code says of an error's `why` or `limit` where it raises it."""
    said = set()
    for package in PACKAGES:
        for path in (SERVICES / package).rglob("*.py"):
            text = path.read_text()
            if "testing" in path.parts or not ("why=" in text or "limit=" in text):
                continue
            calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
            given = (each for call in calls for each in call.keywords if each.arg in ("why", "limit"))
            said |= {(package, one) for each in given for one in texts(each.value) if " " in one}
    return said


def test_what_errors_say_has_a_chinese_text() -> None:
    said = said_of_errors()
    assert len(said) > 300
    english = {
        f"{p}: {one}" for p, one in said if not re.search("[\u3000-\u9fff]", localize.sentence(one, p))
    }
    assert len(english) <= UNTRANSLATED_MAX, sorted(english)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_service_says_in_an_error_of_the_chassis_reaches_the_caller_in_chinese(package: str) -> None:
    for english in localize.texts_of(package).sentences:
        if " " not in english or "{}" in english:
            continue
        status = rich_status(InvalidArgument(field="a_field", why=english), f"callmesh.{package}", "zh-CN")
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
    assert localize.message(NotFound(resource="customers/{0}"), "zh") == "未找到 customers/{0}。"
    assert localize.message(InvalidArgument(field="x", why="is {odd}"), "zh") == "x：is {odd}。"
    limit = ResourceExhausted(subject="client:a", limit="at most 5", retry_seconds=1.0)
    assert localize.message(limit, "zh") == "已达到上限：client:a，最多 5。"


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
        # Of which only "must be" is known.
        ("crm", "must be lighter than air", "must be lighter than air"),
        ("crm", "must be lighter than air (and 1 more)", "must be lighter than air（另有 1 处）"),
    ],
)
def test_a_sentence_is_translated_whole_or_not_at_all(package: str, english: str, chinese: str) -> None:
    assert localize.sentence(english, package) == chinese


def test_a_localized_status_still_fits_its_trailer() -> None:
    error = InvalidArgument.many([(f"field_{n}", "值" * 190) for n in range(16)])
    status = rich_status(error, "callmesh.crm", "zh")
    assert sum(len(d.value) for d in status.details) <= DETAILS_BYTES_MAX
    assert len(details(status, error_details_pb2.LocalizedMessage)) == 1
