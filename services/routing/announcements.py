"""Which of a queue's announcements a refused caller hears. Pure."""

from __future__ import annotations

from collections.abc import Iterable

#: Longest announcement that may be set: half a minute of speech, and short enough to travel in an error.
ANNOUNCEMENT_CHARACTERS_MAX = 500


def announcement(texts: Iterable[tuple[str, str]], language: str) -> str:
    """The text in the caller's language (BCP 47): the same tag, else the longest tag that the language begins
    with, else another variety of the language, else the only or first one by tag. Empty when there is none.
    """
    by_tag = {tag.casefold(): text for tag, text in texts}
    wanted = language.casefold()
    while wanted:
        if wanted in by_tag:
            return by_tag[wanted]
        wanted = wanted.rpartition("-")[0]
    primary = language.casefold().partition("-")[0]
    akin = sorted(tag for tag in by_tag if primary and tag.partition("-")[0] == primary)
    return by_tag[(akin or sorted(by_tag))[0]] if by_tag else ""
