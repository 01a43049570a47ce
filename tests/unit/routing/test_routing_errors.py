"""What the engine's refusals come to: each says in whole sentences, in both languages, what to do next."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import pkgutil
import re
from typing import Any

import pytest

from chassis import localize
from chassis.errors import Code
from routing import deciders, engine
from routing.errors import error_of
from routing.model import (
    AcceptOffer,
    EndCall,
    FinishWrapUp,
    MonitorCall,
    MonitorMode,
    PauseAgent,
    Refusal,
    Reprioritize,
    RequestCallback,
    TransferCall,
)

_CHINESE = re.compile("[\u4e00-\u9fff]")
#: Names of fields and methods may stand in a Chinese text, English words side by side may not.
_ENGLISH = re.compile(r"\b[A-Za-z]+ [a-z]+\b")
_WHO: dict[str, Any] = {"agent": "amy", "session": 1}
COMMANDS: list[Any] = [
    None,
    EndCall(call_id="c1"),
    TransferCall(call_id="c1", queue="sales"),
    MonitorCall(call_id="c1", mode=MonitorMode.STOP, address=""),
    RequestCallback(call_id="c1", number=""),
    AcceptOffer(**_WHO, offer_id="o1"),
    FinishWrapUp(**_WHO, call_id="c1", disposition=None),
    PauseAgent(agent="amy", paused=True),
    Reprioritize(call_id="c1", priority=1),
]


def refusals() -> list[Refusal]:
    """Every reason and field that the engine's code refuses with."""
    found = set()
    names = [each.name for each in pkgutil.iter_modules(deciders.__path__, "routing.deciders.")]
    modules = [engine, *map(importlib.import_module, names)]
    for node in itertools.chain.from_iterable(ast.walk(ast.parse(inspect.getsource(m))) for m in modules):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            said = [*node.args, *(keyword.value for keyword in node.keywords)]
            texts = [n.value for part in said for n in ast.walk(part) if isinstance(n, ast.Constant)]
            reasons = [text for text in texts if isinstance(text, str) and text.isupper()]
            if node.func.id in ("refuse", "Refusal") and reasons:
                fields = [text for text in texts if text not in reasons]
                found |= {(reason, str(fields[-1]) if fields else "") for reason in reasons}
    return [Refusal(reason=reason, field=field) for reason, field in sorted(found)]


def test_the_engines_refusals_are_found() -> None:
    reasons = {refusal.reason for refusal in refusals()}
    assert {"ILLEGAL_STATE", "QUEUE_FULL", "NEWER_SESSION", "NO_SESSION", "OFFER_ENDED"} < reasons


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
@pytest.mark.parametrize("refusal", refusals(), ids=lambda refusal: f"{refusal.reason}-{refusal.field}")
def test_a_refusal_says_what_to_do_in_both_languages(refusal: Refusal, command: Any) -> None:
    error = error_of(refusal, "c1", "service", "amy", command)
    english, chinese = (localize.message(error, language, "routing") for language in ("en", "zh"))
    parrot = refusal.reason.lower().replace("_", " ")
    assert f": {parrot}." not in english, "the reason alone, in lower case, helps nobody"
    assert "/." not in english and "{" not in english and _CHINESE.search(chinese)
    assert not _ENGLISH.search(chinese), chinese
    assert error.code is not Code.INTERNAL


@pytest.mark.parametrize(
    ("refusal", "command", "said"),
    [
        (Refusal(reason="ILLEGAL_STATE"), COMMANDS[1], "HangUp"),
        (Refusal(reason="ILLEGAL_STATE"), COMMANDS[2], "handed on"),
        (Refusal(reason="OUT_OF_RANGE", field="not_before_time"), COMMANDS[4], "at most 24 hours from now"),
        (Refusal(reason="OUT_OF_RANGE", field="attributes"), COMMANDS[2], "16 keys or 16384 bytes"),
        (Refusal(reason="ILLEGAL_STATE"), COMMANDS[8], "TransferCall"),
        (Refusal(reason="NO_SESSION", field="agent"), COMMANDS[7], "nobody is logged in"),
        (Refusal(reason="TOO_MANY_SKILL_SETS", field="skills"), COMMANDS[2], "queue: "),
        (Refusal(reason="TOO_MANY_SKILL_SETS", field="skills"), None, "call.skills: "),
    ],
)
def test_a_refusal_is_about_what_was_asked(refusal: Refusal, command: Any, said: str) -> None:
    assert said in error_of(refusal, "c1", "service", "amy", command).message


@pytest.mark.parametrize("reason", ["QUEUE_FULL", "QUEUE_CLOSED", "NO_AGENT_LOGGED_IN"])
def test_who_is_refused_is_told_the_queues_words_whole(reason: str) -> None:
    error: Any = error_of(Refusal(reason=reason, field="queue"), "c1", "service")
    words = "x" * 400
    said = error.saying(words)
    assert said.details.metadata["announcement"] == words
    assert (said.reason, said.message) == (error.reason, error.message)
    assert said.details.retry_seconds == error.details.retry_seconds
    assert "announcement" not in error.saying("").details.metadata
