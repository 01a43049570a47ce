"""What a demo's day consists of: calls, duty periods, regions. Plain values, no I/O.

Times are seconds of business time from the start of the replayed window, unless a name says otherwise.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionPlan:
    """A regional centre of the demo."""

    #: Region id, as in `regions/{region}`.
    id: str
    #: For people.
    display_name: str
    #: Degrees north and east.
    latitude: float
    longitude: float
    #: Areas at home here, as the directory writes them.
    served_areas: tuple[str, ...]
    #: Share of the day's callers who live here; the four add up to 1.
    load_share: float
    #: This is the head office.
    head_office: bool = False


def _areas(provinces: str) -> tuple[str, ...]:
    return tuple(f"CN/{province}" for province in provinces.split())


#: The enterprise of the demo: head office in Beijing, three regional centres.
REGIONS: tuple[RegionPlan, ...] = (
    RegionPlan(
        id="beijing",
        display_name="北京",
        latitude=39.9042,
        longitude=116.4074,
        load_share=0.28,
        served_areas=_areas("北京 天津 河北 山西 内蒙古 辽宁 吉林 黑龙江 山东"),
        head_office=True,
    ),
    RegionPlan(
        id="shanghai",
        display_name="上海",
        latitude=31.2304,
        longitude=121.4737,
        load_share=0.27,
        served_areas=_areas("上海 江苏 浙江 安徽 江西 河南 湖北"),
    ),
    RegionPlan(
        id="guangzhou",
        display_name="广州",
        latitude=23.1291,
        longitude=113.2644,
        load_share=0.25,
        served_areas=_areas("广东 广西 海南 福建 湖南"),
    ),
    RegionPlan(
        id="chengdu",
        display_name="成都",
        latitude=30.5728,
        longitude=104.0668,
        load_share=0.20,
        served_areas=_areas("四川 重庆 云南 贵州 西藏 陕西 甘肃 青海 宁夏 新疆"),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DayCall:
    """One caller of the day."""

    #: Unique in the day; becomes the edge's call id.
    id: str
    #: When the caller asks for an agent.
    arrival_seconds: float
    #: How long the caller waits before hanging up; 0 for one who hangs up without waiting at all.
    patience_seconds: float
    #: How long the agent is occupied: conversation and after-call work.
    service_seconds: float
    #: Type of service asked, the log's code (PS, PE, IN, NE, NW, TT).
    type: str
    #: 0 or 1 regular, 2 high.
    priority: int
    #: The same person has the same key; empty when not identified.
    customer: str
    #: E.164, constructed.
    number: str
    #: Region the number resolves to.
    home_region: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Duty:
    """A span in which an agent is at work: [start, end)."""

    #: Agent id.
    agent: str
    #: First second on duty, at least 0.
    start_seconds: float
    #: First second off duty again.
    end_seconds: float


#: Duties go on for so long after the window, for the calls that still wait or talk.
OVERTIME_SECONDS = 1800


@dataclass(frozen=True, kw_only=True, slots=True)
class Day:
    """A window of a day, ready to be replayed."""

    #: "log" or "generated".
    source: str
    #: One line for people.
    title: str
    #: Calendar day.
    date: datetime.date
    #: Start of the window, seconds after midnight.
    window_start_seconds: int
    #: Length of the window.
    window_seconds: int
    #: By arrival.
    calls: tuple[DayCall, ...]
    #: Any order; the spans of one agent do not overlap.
    duties: tuple[Duty, ...]
    #: Agent id to region id.
    agent_regions: dict[str, str]
    #: What was assumed or constructed, one sentence each, for the report.
    notes: tuple[str, ...] = ()


def clock_text(seconds: float) -> str:
    """Seconds after midnight as "14:05"; past midnight the hours go on."""
    return f"{int(seconds) // 3600:02d}:{int(seconds) // 60 % 60:02d}"
