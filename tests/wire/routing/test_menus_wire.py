"""What menus have told once, they and their consumers go on reading, and tokens of sessions go on being read.

`menu_events/` holds an envelope of every event type as it went to the bus; they never change. A new type
needs a new fixture, a new field a line in `ADDED_LATER`.
"""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from callmesh.routing.v1 import menu_events_pb2 as events
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
#: Messages that are parts of events.
PARTS = {"SurveyAnswer"}
#: Fields that are younger than the fixtures.
ADDED_LATER: dict[str, set[str]] = {}
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


def test_every_event_type_has_its_fixture() -> None:
    assert sorted(STORED) == sorted(set(events.DESCRIPTOR.message_types_by_name) - PARTS)


@pytest.mark.parametrize("name", sorted(STORED))
def test_a_stored_event_is_read_without_loss(name: str) -> None:
    event, cls = stored(name), getattr(events, name)
    message = event.message(cls)
    assert (event.type, event.source) == (f"callmesh.routing.v1.{name}", "routing")
    assert ParseDict(event.data, cls()) == message and MessageToDict(message) == event.data
    missing = {field.name for field in cls.DESCRIPTOR.fields} - {f.name for f, _ in message.ListFields()}
    assert missing <= ADDED_LATER.get(name, set()), "a fixture has every field of its day"


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
