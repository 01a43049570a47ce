"""The call log's parser: quirks are taken, torn lines are named, nothing else is lost."""

from __future__ import annotations

import datetime
import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.demo import calls as log

HEADER = "\t".join(log.COLUMNS)
SERVED = (
    "AA0101 34536 0 0 PS 990201 7:02:47 7:02:56 9 0:00:00 0:00:00 0 AGENT 7:02:55 7:05:41 166 DORIT"
).replace(" ", "\t")
HUNG_UP = (
    "AA0101 34539 23317894 2 PS 990201 8:09:16 8:09:22 6 8:09:22 8:09:27 5 HANG 0:00:00 0:00:00 0 NO_SERVER"
).replace(" ", "\t")


def changed(line: str, **columns: str) -> str:
    cells = dict(zip(log.COLUMNS, line.split("\t"), strict=True))
    return "\t".join((cells | columns).values())


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_text("\n".join([HEADER, *lines]) + end, encoding="utf-8")
    return path


def read(path: Path) -> tuple[list[log.LogCall], log.TornLines]:
    torn = log.TornLines()
    return list(log.read_log(path, torn)), torn


def test_reads_a_served_and_an_abandoned_call() -> None:
    served, hung = log.parse_line(2, SERVED), log.parse_line(3, HUNG_UP)
    assert (served.outcome, served.service_seconds, served.server) == ("AGENT", 166, "DORIT")
    assert served.arrival_seconds == 7 * 3600 + 2 * 60 + 56
    assert served.service_start_seconds == served.arrival_seconds - 1
    assert served.date == datetime.date(1999, 2, 1)
    assert served.customer == ""
    assert (hung.outcome, hung.wait_seconds, hung.service_seconds) == ("HANG", 5, 0)
    assert (hung.customer, hung.priority, hung.server) == ("23317894", 2, "")


def test_takes_the_known_quirks() -> None:
    negative = changed(SERVED, vru_entry="9:48:14", vru_exit="9:47:17", vru_time="-57", q_time="174")
    assert log.parse_line(2, negative).arrival_seconds == 9 * 3600 + 47 * 60 + 17
    nameless = changed(SERVED, server="NO_SERVER")
    assert log.parse_line(2, nameless).server == ""
    assert log.parse_line(2, changed(SERVED, customer_id="6.02701E+11")).customer == ""


def test_a_call_that_passes_midnight_goes_on() -> None:
    late = changed(SERVED, vru_entry="23:59:55", vru_exit="0:00:05", ser_start="0:00:04", ser_exit="0:01:00")
    call = log.parse_line(2, late)
    assert call.arrival_seconds == log.DAY_SECONDS + 5
    assert call.service_start_seconds == call.arrival_seconds - 1
    before = changed(
        SERVED, vru_entry="23:59:32", vru_exit="23:59:44", ser_start="23:59:43", ser_exit="0:01:28"
    )
    assert log.parse_line(2, before).arrival_seconds == log.DAY_SECONDS - 16


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (SERVED[:60], "columns"),
        (changed(SERVED, date="990231"), "date"),
        (changed(SERVED, date="1999-02-01"), "date"),
        (changed(SERVED, vru_entry="7:61:00"), "vru_entry"),
        (changed(SERVED, vru_exit="24:00:00"), "vru_exit"),
        (changed(SERVED, ser_time="long"), "ser_time"),
        (changed(SERVED, ser_time="-3"), "ser_time"),
        (changed(SERVED, q_time="99999999"), "q_time"),
        (changed(SERVED, priority="7"), "priority"),
        (changed(SERVED, outcome="MAYBE"), "outcome"),
        (changed(SERVED, type="ps;drop"), "type"),
        (changed(SERVED, call_id=""), "call_id"),
        (changed(SERVED, call_id="x" * 33), "call_id"),
        (changed(SERVED, server="a" * 65), "server"),
        (changed(SERVED, customer_id="12x"), "customer_id"),
        (changed(SERVED, customer_id="٣٤"), "customer_id"),
    ],
)
def test_a_bad_line_is_named_and_the_rest_goes_on(tmp_path: Path, line: str, reason: str) -> None:
    found, torn = read(write(tmp_path / "log.tsv", SERVED, line, HUNG_UP))
    assert [call.line for call in found] == [2, 4]
    assert [(t.number, reason in t.reason) for t in torn.kept] == [(3, True)]


def test_the_last_line_may_be_torn_off(tmp_path: Path) -> None:
    found, torn = read(write(tmp_path / "log.tsv", SERVED, HUNG_UP[:40], end=""))
    assert len(found) == 1
    assert torn.kept[0].number == 3


def test_an_endless_line_is_skipped_in_bounded_pieces(tmp_path: Path) -> None:
    found, torn = read(write(tmp_path / "log.tsv", "x" * 3_000_000, SERVED))
    assert [call.line for call in found] == [3]
    assert torn.kept[0].number == 2


def test_bytes_that_are_no_text_are_one_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_bytes(HEADER.encode() + b"\n\xff\xfe\x00\x01\n" + SERVED.encode() + b"\n")
    found, torn = read(path)
    assert (len(found), torn.total) == (1, 1)


def test_a_gzip_cut_in_the_middle_gives_what_stands_before(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv.gz"
    lines = [HEADER] + [changed(SERVED, call_id=os.urandom(8).hex()) for _ in range(4000)]
    packed = gzip.compress(("\n".join(lines) + "\n").encode())
    path.write_bytes(packed[: len(packed) * 3 // 4])
    found, torn = read(path)
    assert 1000 < len(found) < 4000
    assert torn.total == 1
    assert "damaged" in torn.kept[0].reason


def test_torn_lines_are_counted_beyond_those_kept(tmp_path: Path) -> None:
    many = ["rubbish"] * (log.TORN_LINES_KEPT_MAX + 50)
    _, torn = read(write(tmp_path / "log.tsv", *many, SERVED))
    assert torn.total == len(many)
    assert len(torn.kept) == log.TORN_LINES_KEPT_MAX


def test_phantoms_count_nowhere(tmp_path: Path) -> None:
    path = write(tmp_path / "log.tsv", SERVED, changed(SERVED, outcome="PHANTOM"))
    summary = log.summarise(path)
    assert summary.phantoms == 1
    assert sum(summary.calls_by_day.values()) == 1
    assert len(log.calls_of_day(path, datetime.date(1999, 2, 1))) == 1


def test_the_first_weekday_is_the_default_day(tmp_path: Path) -> None:
    days = ("990207", "990206", "990209", "990208")  # Sunday, Saturday, Tuesday, Monday
    summary = log.summarise(write(tmp_path / "log.tsv", *(changed(SERVED, date=d) for d in days)))
    assert log.choose_day(summary, None) == datetime.date(1999, 2, 8)
    assert log.choose_day(summary, "990207") == log.choose_day(summary, "1999-02-07")


@pytest.mark.parametrize("wanted", ["990301", "yesterday", "", "9902011"])
def test_a_day_that_is_not_there_is_refused(tmp_path: Path, wanted: str) -> None:
    summary = log.summarise(write(tmp_path / "log.tsv", SERVED))
    with pytest.raises(log.CallLogError, match=r"day|no call"):
        log.choose_day(summary, wanted)


def test_a_file_without_calls_says_why(tmp_path: Path) -> None:
    with pytest.raises(log.CallLogError, match="line 2: 1 columns"):
        log.summarise(write(tmp_path / "log.tsv", "nothing here"))
    with pytest.raises(log.CallLogError, match="cannot be read"):
        log.summarise(tmp_path / "missing.tsv")
    with pytest.raises(log.CallLogError, match="cannot be read"):
        log.summarise(tmp_path)


def test_busiest_window_is_the_earliest_of_equals() -> None:
    assert log.busiest_window([10, 20, 4000, 4001, 4002], 3600) == 900
    assert log.busiest_window([], 3600) == 0
    assert log.busiest_window([5], log.DAY_SECONDS) == 0


@given(st.text(max_size=400))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        call = log.parse_line(1, text)
    except log.LineError as error:
        assert str(error)
    else:
        assert call.line == 1


@given(st.data())
def test_no_damaged_cell_breaks_the_parser(data: st.DataObject) -> None:
    cells = SERVED.split("\t")
    index = data.draw(st.integers(0, len(cells) - 1))
    cells[index] = data.draw(st.text(alphabet="0123456789:-.E+ABCx \u0661", max_size=12))
    try:
        call = log.parse_line(1, "\t".join(cells))
    except log.LineError as error:
        assert str(error)
    else:
        assert call.wait_seconds >= 0 and call.service_seconds >= 0


BANK = Path(__file__).resolve().parents[3] / "../shared/data/anonymous_bank_1999_02.tsv.gz"


@pytest.mark.skipif(not BANK.exists(), reason="the bank log (../shared/data) is not here")
def test_the_bank_logs_known_figures() -> None:
    summary = log.summarise(BANK)
    total = sum(summary.calls_by_day.values())
    assert (summary.torn.total, summary.phantoms) == (0, 278)
    assert total == 33_344 - 278 - 0
    assert sum(summary.served.values()) / total == pytest.approx(0.821, abs=0.001)
    assert log.choose_day(summary, None) == datetime.date(1999, 2, 1)
