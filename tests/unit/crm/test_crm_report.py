"""The voice-of-the-customer report as files."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from callmesh.common.v1 import common_pb2
from callmesh.crm.v1 import insights_pb2
from cli import report_voc
from cli.main import app

ZONE = zoneinfo.ZoneInfo("Asia/Shanghai")


def voice_report() -> insights_pb2.VoiceReport:
    scope = insights_pb2.InsightScope()
    begin, end = report_voc.span("2026-03-01", 1, "Asia/Shanghai")
    scope.interval.start_time.FromDatetime(begin)
    scope.interval.end_time.FromDatetime(end)
    cost = common_pb2.Money(currency_code="CNY", amount="12.50")
    each = common_pb2.Money(currency_code="CNY", amount="0.63")
    return insights_pb2.VoiceReport(
        scope=scope,
        interactions=42,
        hot_topics=[
            insights_pb2.HotTopic(contact_reason="billing|x", observed=9, expected=2.5, p_value=0.001)
        ],
        hot_spots=[
            insights_pb2.HotSpot(
                places=["福田街道"],
                observed=30,
                expected=8.0,
                relative_risk=4.2,
                products=["5g-199"],
                partners=["acme"],
            )
        ],
        reason_stats=[
            insights_pb2.ReasonStats(
                contact_reason="billing", calls=20, repeat_call_ratio=0.25, cost=cost, cost_per_call=each
            )
        ],
        agent_feedback=[insights_pb2.AgentFeedback(agent="agents/a1", interactions=7, praises=2)],
    )


def test_a_day_is_that_of_its_zone() -> None:
    begin, end = report_voc.span("2026-03-01", 2, "Asia/Shanghai")
    assert begin == datetime(2026, 2, 27, 16, 0, tzinfo=UTC)
    assert end == datetime(2026, 3, 1, 16, 0, tzinfo=UTC)
    with pytest.raises(ValueError):
        report_voc.span("tomorrow", 1, "Asia/Shanghai")


def test_the_report_has_tables_and_charts(tmp_path: Path) -> None:
    written = report_voc.write(voice_report(), tmp_path, ZONE)
    assert [path.name for path in written] == ["voc.md", "voc-topics.png", "voc-reasons.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])
    text = written[0].read_text()
    for wanted in (
        "2026-03-01 to 2026-03-01",
        "42 interactions",
        r"billing\|x",
        "福田街道",
        "12.50 CNY | 0.63 CNY |",
        "| 5g-199 | acme |",
        "agents/a1",
    ):
        assert wanted in text
    assert "| --- |" in text


def test_a_report_without_findings_says_so(tmp_path: Path) -> None:
    empty = insights_pb2.VoiceReport(scope=voice_report().scope)
    [path] = report_voc.write(empty, tmp_path, ZONE)
    assert path.read_text().count("Nothing.") == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report", "voc", "--day", "tomorrow"], "callmesh:"),
        (["report", "voc", "--address", "127.0.0.1:1", "--day", "2026-03-01"], "nothing answers at"),
        (["import", "nothing.csv"], "there is no file"),
        (["import", "README.md"], "must end in"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code != 0
    # What is refused is said by the entry point.
    assert told in done.output + capfd.readouterr().err + str(done.exception)
