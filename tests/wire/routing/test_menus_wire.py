"""What menus have told once, they and their consumers go on reading, and tokens of sessions go on being read.

`menu_events/` holds an envelope of every event type (tests/wire/test_sent_events.py).
"""

from __future__ import annotations

import base64
from pathlib import Path

from chassis.bus import Event
from chassis.testing import FakeClock
from crm import inbound as crm_inbound
from crm import timeline
from crm.handlers import Memory
from crm.memory_store import MemoryStore
from crm.model import InteractionKind
from routing.menus.engine import Level, Notice, Outcome, Personal, State, Visit
from routing.menus.tokens import body_of, state_of
from tickets import inbound as tickets_inbound

STORED = {path.stem: path for path in sorted((Path(__file__).parent / "menu_events").glob("*.json"))}
SESSION = State(
    id="s1",
    menu="hotline",
    version=3,
    began_ms=1_772_000_000_000,
    last_ms=1_772_000_009_000,
    language="zh-CN",
    number="+8613800138000",
    customer="customers/li",
    call_id="pbx:7f3a",
    step=3,
    level=Level.TIMES,
    way=("welcome", "visit"),
    visits=(
        Visit(node="welcome", key="9", listened_ms=4_000, notice=Notice.WRONG_KEY),
        Visit(node="welcome", key="3", listened_ms=5_000),
    ),
    tries=1,
    outcome=Outcome.OPEN,
    own=(("7", "pay"),),
    personal=Personal(choices=(("5", "pay"),), before=False),
    times=(0, 1_772_003_600_000),
)
#: `SESSION` in the bytes of form 1: sessions that begin before an upgrade end after it.
BODY = (
    "3AAVAaJzMadob3RsaW5lA88AAAGck244AM8AAAGck25bKKV6aC1DTq4rODYxMzgwMDEzODAwMKxjdXN0b21lcnMvbGmocGJ4"
    "OjdmM2EDA5Knd2VsY29tZaV2aXNpdJKUp3dlbGNvbWWhOc0PoAGUp3dlbGNvbWWhM80TiAABAJGSoTejcGF5kZKhNaNwYXnC"
    "kgDPAAABnJOlJoAA"
)


def stored(name: str) -> Event:
    return Event.from_json(STORED[name].read_bytes())


def test_crm_puts_answers_after_a_call_into_the_timeline() -> None:
    store = MemoryStore()
    memory = Memory(store, FakeClock())
    for _ in range(2):
        crm_inbound.learn(memory, stored("SurveyAnswered"))
    session = stored("SurveyAnswered").data["session"]
    entry = store.entry(timeline.entry_id(InteractionKind.SURVEY, "routing", session))
    assert entry is not None
    seen = timeline.project(entry)
    assert (seen.subject, seen.number) == ("c:li", "+8613800000001")
    assert {name: seen.detail[name] for name in ("survey", "satisfaction", "comment", "call_id")} == {
        "survey": "menus/after",
        "satisfaction": 2,
        "comment": "friendliness: 3, solved: 1",
        "call_id": "call-1",
    }


def test_tickets_hears_of_a_caller_who_was_not_satisfied() -> None:
    heard: list[tuple[object, ...]] = []

    class Desk:
        def survey_answered(self, call_id: str, satisfaction: float, **said: object) -> None:
            heard.append((call_id, satisfaction, said["time_ms"], said["reason"]))

    tickets_inbound.take(Desk(), stored("SurveyAnswered"))  # type: ignore[arg-type]
    assert heard == [("call-1", 2.0, 1_772_419_560_000, "the caller gave 2.0 of 5 in menus/after")]


def test_a_session_of_form_1_goes_on() -> None:
    assert state_of(base64.b64decode(BODY)) == SESSION
    assert base64.b64encode(body_of(SESSION)).decode() == BODY
