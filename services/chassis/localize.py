"""Errors in the caller's language: English by default, Chinese where the caller prefers it.

English texts stand in the code: a class's docstring is its message. Chinese ones are data beside the code of
the service that raises them, `messages_zh.json`, looked up by the class's name; what is wrong with a field is
looked up by the English sentence with `{}` where values stand, in the server's own texts and then in the
chassis's, whichever class the error has: most bad fields are plain `InvalidArgument`. A sentence that nobody
translated stays in English: half a message in one's own language is better than none.

Nothing here is touched by a call that succeeds.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from chassis.errors import MESSAGE_CHARACTERS_MAX, Blank, CallmeshError, shorten

#: What the header is called.
HEADER = "accept-language"
#: Longest header that is looked at, characters, and most languages in it: real ones have about five.
HEADER_CHARACTERS_MAX = 512
RANGES_MAX = 32
#: BCP 47 tags of what can be answered, by primary language.
TAGS = {"en": "en-US", "zh": "zh-CN"}
DEFAULT = "en"
FILE = "messages_zh.json"
#: Values of an error that are sentences and not names.
_SENTENCES = ("why", "limit", "what")
#: What stands behind the first of several faults: it holds a sentence and is looked for before all others,
#: which would take it for a part of their last value.
_MORE, _MORE_PATTERN = "{} (and {} more)", re.compile(r"(.+) \(and (\d+) more\)")
#: English words side by side: no value but a piece of a sentence that nobody translated.
_WORDS = re.compile(r"\b[a-z]{2,} [a-z]{2,}\b")
#: What the caller said, put in quotes: whatever it is, no translation is missing.
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
#: The "or" of a choice of constants, "PLAN or ADD_ON": the one English word that a value may hold.
_OR = re.compile(r"(?<=[A-Z0-9_]) or (?=[A-Z0-9_])")

_RANGE = re.compile(r"([a-z]{1,8}(?:-[a-z0-9]{1,8})*|\*)\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*)?", re.I)


def preferred(header: str | None) -> str | None:
    """The language, "zh" or "en", that an Accept-Language header prefers (RFC 9110, section 12.5.4): the
    highest weight wins, the first named among equals, "*" is the default. None without a header: the caller
    asked for none. A header that names nothing we have, or no language at all, gives the default.
    """
    if header is None:
        return None
    weights: dict[str, float] = {}
    for part in header[:HEADER_CHARACTERS_MAX].split(",")[:RANGES_MAX]:
        found = _RANGE.fullmatch(part.strip())
        if found is not None:
            language = found[1].partition("-")[0].lower()
            weight = min(1.0, float(found[2] or 1.0)) if found[2] is not None else 1.0
            # "zh-TW;q=0.3, zh-CN" wants Chinese as much as its dearest kind.
            weights[language] = max(weight, weights.get(language, 0.0))
    if "*" in weights:
        any_weight = weights.pop("*")
        # It stands for every language not named; of those the default is the one we offer.
        weights.setdefault(DEFAULT, any_weight)
    best = max((w for language, w in weights.items() if language in TAGS), default=0.0)
    return next((one for one, weight in weights.items() if one in TAGS and 0 < weight == best), DEFAULT)


def accepted_language(context: Any) -> str | None:
    """The Accept-Language header of a call, None without one."""
    for key, value in context.invocation_metadata() or ():
        if key == HEADER and isinstance(value, str):
            return value
    return None


def caller_language(context: Any) -> str:
    """What the caller of a call reads, "zh" or "en": for texts about single entries of an answer.

    `context` is None outside a call.
    """
    asked = accepted_language(context) if context is not None else None
    return preferred(asked) or DEFAULT


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """One package's Chinese texts."""

    #: Class name -> template, with the placeholders of the English one.
    errors: Mapping[str, str]
    #: English sentence with "{}" for each value -> Chinese one with "{0}", "{1}", ...
    sentences: Mapping[str, str]


@functools.cache
def texts_of(package: str) -> Texts:
    """The texts of one of our packages; empty for a package that has none, and for a mere module."""
    try:
        data = json.loads(resources.files(package).joinpath(FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ModuleNotFoundError, TypeError):
        return Texts(errors={}, sentences={})
    return Texts(errors=data.get("errors", {}), sentences=data.get("sentences", {}))


@functools.cache
def _patterns(package: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    """What recognises a package's sentences, longest first, so that the most particular one is taken."""
    found = []
    for english in sorted(texts_of(package).sentences, key=len, reverse=True):
        # What a caller said may be nothing at all.
        pattern = "(.*?)".join(re.escape(piece) for piece in english.split("{}"))
        found.append((re.compile(pattern), texts_of(package).sentences[english]))
    return tuple(found)


def sentence(text: str, package: str = "chassis", depth: int = 0) -> str:
    """What is wrong, in Chinese; as it is where nobody translated it. `package` is searched before the
    chassis. A sentence is translated whole or not at all: "must be {}" does not make "必须是 set for one
    only".
    """
    if depth < 1 and (more := _MORE_PATTERN.fullmatch(text)) is not None:
        return texts_of("chassis").sentences[_MORE].format(sentence(more[1], package, depth + 1), more[2])
    for name in dict.fromkeys((package, "chassis")):
        for pattern, chinese in _patterns(name):
            found = pattern.fullmatch(text)
            if found is None:
                continue
            # ", {}" holds a sentence; two levels are all there are.
            values = [sentence(value, package, depth + 1) if depth < 1 else value for value in found.groups()]
            if not any(_WORDS.search(value) for value in values if not _QUOTED.fullmatch(value)):
                return chinese.format(*(_OR.sub(" 或 ", value) for value in values))
    return text


def description(text: str, language: str, package: str) -> str:
    """What is wrong with an entry of a list, in "zh" or "en"."""
    return sentence(text, package) if language == "zh" else text


def package_of(kind: type) -> str:
    """The package that a class is of, and so the one whose texts are told where it is used."""
    return kind.__module__.partition(".")[0]


def known_as(error: CallmeshError) -> str:
    """What an error's text in other languages is found by, "" where it has none: with the error's values all
    that `told_again` needs, also long after the error is gone.
    """
    for base in type(error).__mro__:
        if base.__name__ in texts_of(package_of(base)).errors:
            return f"{package_of(base)}.{base.__name__}"
    return ""


def told_again(name: str, values: Mapping[str, Any], package: str) -> str:
    """In Chinese, the message of an error of which only the name (`known_as`) and the values were kept; ""
    for a name that has no text.
    """
    home, _, kind = name.partition(".")
    template = texts_of(home).errors.get(kind) if kind else None
    if template is None:
        return ""
    said = {
        key: sentence(value, package) if key in _SENTENCES and isinstance(value, str) else value
        for key, value in values.items()
    }
    return shorten(template.format_map(Blank(said)).strip(), MESSAGE_CHARACTERS_MAX)


def message(error: CallmeshError, language: str, package: str) -> str:
    """An error's message in "zh" or "en", as a server of `package` tells it."""
    if language != "zh":
        return error.message
    return told_again(known_as(error), error.values, package) or error.message
