"""Settings: what is refused, and what the parts are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from pydantic import ValidationError

from chassis.errors import StartError
from routing.config import RoutingSettings
from routing.server import place_token_key


def settings(**fields: Any) -> RoutingSettings:
    return RoutingSettings(**{"region": "beijing", "auth_mode": "open", **fields})


BAD: list[tuple[str, Any, str]] = [
    ("region", "", "region"),
    ("region", "Beijing", "region"),
    ("region", "-beijing", "region"),
    ("region", "b" * 64, "region"),
    ("region", "bei\njing", "region"),
    ("peers", "shanghai", "peers"),
    ("peers", "shanghai=host", "peers"),
    ("peers", "shanghai=host:port", "peers"),
    ("peers", "shanghai=a:1,chengdu=a:1", "peers"),
    ("advertise", "one", "advertise"),
    ("advertise", "one:70000", "advertise"),
    ("peers", "shanghai=a:70000", "peers"),
    ("backup_seconds", 0.0, "backup_seconds"),
    ("peers", "=a:1", "peers"),
    ("place_token_key_file", "/no/such/file", "place_token_key_file"),
    ("place_token_life_seconds", 59, "place_token_life_seconds"),
    ("heartbeat_seconds", 0.0, "heartbeat_seconds"),
    ("takeover_seconds", 61.0, "takeover_seconds"),
    ("outage_seconds", float("nan"), "outage_seconds"),
    ("silent_seconds", 0.1, "silent_seconds"),
    ("memory_seconds", 0, "memory_seconds"),
    ("on_outage", "go on", "on_outage"),
    ("hold_seconds", 0.5, "hold_seconds"),
    ("continue_seconds_max", 0.0, "continue_seconds_max"),
    ("backlog_bytes_max", 1, "backlog_bytes_max"),
]


@pytest.mark.parametrize(("name", "value", "field"), BAD)
def test_a_bad_setting_is_named(name: str, value: Any, field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(**{name: value})
    assert [error["loc"][0] for error in caught.value.errors()] == [field]


@pytest.mark.parametrize(("changes", "named"), [
    ({"heartbeat_seconds": 0.5, "takeover_seconds": 0.9}, "ROUTING_TAKEOVER_SECONDS"),
    ({"backup_seconds": 1.0}, "ROUTING_BACKUP_SECONDS"),
    ({"on_outage": "continue", "outage_seconds": 1.1}, "ROUTING_HOLD_SECONDS"),
])  # fmt: skip
def test_patience_is_longer_than_what_it_waits_for(changes: dict[str, float], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        settings(**changes)


def test_peers_are_the_routers_of_every_region() -> None:
    peers = " beijing=127.0.0.1:7120, shanghai=[::1]:7121 ,chengdu=router.chengdu.svc:443,"
    found = settings(peers=peers)
    assert found.routers() == {
        "beijing": ("127.0.0.1:7120",),
        "shanghai": ("[::1]:7121",),
        "chengdu": ("router.chengdu.svc:443",),
    }
    assert found.own_address() == "127.0.0.1:7120", "the region has only one"
    assert settings(peers="").routers() == {} and settings(peers="").own_address() == ""


def test_a_router_of_several_says_which_it_is() -> None:
    peers = "beijing=one:1,beijing=two:1,shanghai=three:1"
    found = settings(peers=peers, advertise="two:1")
    assert found.routers()["beijing"] == ("one:1", "two:1") and found.own_address() == "two:1"
    for wrong in ("", "three:1", "four:1"):
        with pytest.raises(ValidationError, match="ROUTING_ADVERTISE must be one of the routers"):
            settings(peers=peers, advertise=wrong)
    assert settings(advertise="anywhere:1").own_address() == "anywhere:1", "alone, it may say what it likes"


@pytest.mark.parametrize("speed", [1.0, 60.0])
def test_protocol_durations_stay_real_when_business_time_runs_fast(speed: float) -> None:
    timing = settings(clock_speed=speed, confirm_seconds=5.0, grace_seconds=4.0).timing()
    assert timing.confirm_span_ms == 5_000 * speed
    assert timing.grace_span_ms == timing.agent_grace_span_ms == 4_000 * speed
    assert timing.reattach_span_ms == 3_000 * speed
    assert timing.memory_span_ms == 900_000, "memory is business time"


def test_the_parts_get_their_options() -> None:
    given = settings(heartbeat_seconds=0.25, takeover_seconds=2.0, outage_seconds=1.5, silent_seconds=4.0)
    options = given.leader_options()
    assert (options.heartbeat_seconds, options.takeover_seconds, options.outage_seconds) == (0.25, 2.0, 1.5)
    assert options.timing == given.timing() and given.front_options().silent_seconds == 4.0
    assert given.continue_options() is None, "new work is refused in an outage"
    going_on = settings(on_outage="continue", hold_seconds=4.0, backlog_bytes_max=1 << 20).continue_options()
    assert going_on is not None and going_on.seconds_max == 600.0
    assert (going_on.hold_seconds, going_on.backlog_bytes_max) == (4.0, 1 << 20)


def test_a_key_file_that_exists_is_taken(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    assert settings(place_token_key_file=str(key)).place_token_key_file == str(key)


@given(key=st.binary(min_size=32, max_size=40))
@example(key=b"\n" + bytes(31))
@example(key=bytes(31) + b" ")
@settings_of_hypothesis(max_examples=50, deadline=None)
def test_random_bytes_are_a_key(tmp_path_factory: pytest.TempPathFactory, key: bytes) -> None:
    """One in twenty-two begins or ends with a byte that looks like a space."""
    file = tmp_path_factory.getbasetemp() / "place-token.key"
    file.write_bytes(key)
    found = place_token_key(settings(place_token_key_file=str(file)))
    assert len(found) >= 32 and found in key


def test_the_line_that_a_key_stands_in_is_no_part_of_it(tmp_path: Path) -> None:
    """It was none in the releases before, whose tokens routers still take."""
    file = tmp_path / "key"
    file.write_bytes(b"k" * 32 + b"\n")
    assert place_token_key(settings(place_token_key_file=str(file))) == b"k" * 32
    file.write_bytes(b"k" * 30 + b"\n")
    with pytest.raises(StartError, match="at least 32"):
        place_token_key(settings(place_token_key_file=str(file)))


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in RoutingSettings.model_fields.values())
