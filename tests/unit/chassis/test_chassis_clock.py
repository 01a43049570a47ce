"""Business time is scaled, real time is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis import clock
from chassis.clock import SystemClock, from_ms, to_ms, to_text
from chassis.testing import FakeClock


class Machine:
    """Stands in for the time module."""

    def __init__(self) -> None:
        self.mono = 100.0
        self.wall_ns = 1_700_000_000_000_000_000

    def monotonic(self) -> float:
        return self.mono

    def time_ns(self) -> int:
        return self.wall_ns


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(clock, "time", machine)
    return machine


def test_business_time_runs_at_its_speed_from_its_origin(machine):
    subject = SystemClock(60.0, origin_real_ms=1_699_999_990_000, origin_business_ms=1_000_000)
    assert subject.now_ms() == 1_000_000 + 10_000 * 60
    machine.mono += 2.5
    assert subject.now_ms() == 1_000_000 + 12_500 * 60
    assert subject.monotonic() == 102.5
    assert subject.real_seconds(120) == 2.0


def test_a_step_of_the_machines_clock_moves_nothing(machine):
    subject = SystemClock()
    before = subject.now()
    machine.wall_ns += 3_600_000_000_000
    machine.mono += 1
    assert subject.now() - before == timedelta(seconds=1)


def test_two_processes_with_the_same_origins_agree(machine):
    first = SystemClock(120.0, 1_700_000_000_000, 5_000)
    machine.mono += 7
    machine.wall_ns += 7_000_000_000
    second = SystemClock(120.0, 1_700_000_000_000, 5_000)
    assert abs(first.now_ms() - second.now_ms()) <= 1


def test_processes_of_one_machine_agree_though_its_wall_clock_was_stepped(machine):
    first = SystemClock(60.0, origin_business_ms=5_000, origin_monotonic_ms=99_000)
    machine.wall_ns -= 1_500_000_000
    machine.mono += 7
    second = SystemClock(60.0, origin_business_ms=5_000, origin_monotonic_ms=99_000)
    assert first.now_ms() == second.now_ms() == 5_000 + 8_000 * 60


def test_a_monotonic_origin_to_come_is_refused(machine):
    with pytest.raises(ValueError, match="another machine"):
        SystemClock(origin_monotonic_ms=100_001)


def test_without_origins_business_time_is_real_time(machine):
    assert SystemClock().now() == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


@pytest.mark.parametrize("speed", [0, -1, float("nan"), float("inf"), 3601])
def test_an_impossible_speed_is_refused(speed):
    with pytest.raises(ValueError, match="clock speed"):
        SystemClock(speed)


@given(st.integers(min_value=-(10**13), max_value=2 * 10**14))
def test_milliseconds_survive_the_round_trip(epoch_ms):
    assert to_ms(from_ms(epoch_ms)) == epoch_ms


@given(
    st.datetimes(
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=8)), timezone(-timedelta(hours=3))])
    )
)
def test_a_moments_text_is_that_of_isoformat_in_utc(moment):
    try:
        exact = moment.astimezone(UTC)
    except OverflowError:
        return
    assert to_text(moment) == exact.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def test_a_naive_datetime_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        to_ms(datetime(2026, 1, 1))
    with pytest.raises(TypeError):
        to_text(datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="time zone"):
        FakeClock(datetime(2026, 1, 1))


def test_the_fake_clock_moves_only_when_told():
    fake = FakeClock(speed=10)
    start = fake.now()
    assert fake.now() == start
    assert fake.advance(30) == start + timedelta(seconds=30)
    assert fake.monotonic() == 3.0
    assert fake.now_ms() == to_ms(start) + 30_000
    with pytest.raises(ValueError, match="does not go back"):
        fake.advance(-1)
