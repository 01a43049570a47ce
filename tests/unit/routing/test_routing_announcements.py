"""What a refused caller hears."""

from __future__ import annotations

import pytest

from routing.announcements import announcement

TEXTS = (("en", "closed"), ("zh-CN", "已关闭"), ("zh-Hant-TW", "已關閉"))


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "closed"),
        ("en-GB", "closed"),
        ("EN-us", "closed"),
        ("zh-CN", "已关闭"),
        ("zh", "已关闭"),
        ("zh-Hant-TW-x", "已關閉"),
        ("fr", "closed"),
        ("", "closed"),
    ],
)
def test_the_callers_language_comes_first(language: str, text: str) -> None:
    assert announcement(TEXTS, language) == text


def test_without_words_there_is_nothing_to_say() -> None:
    assert announcement((), "en") == ""
