"""What a survey's responses come to, counted in the database. The port and its MongoDB side; the responses
themselves lie on a shelf (kinds.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from marketing.kinds import RESPONSES

#: From when and before when responses were completed.
Span = tuple[datetime, datetime]


@dataclass(frozen=True, kw_only=True, slots=True)
class SurveyCounts:
    """The figures of a survey."""

    #: Responses looked at, those of them that are completed, and whether there are more than were looked at.
    started: int = 0
    completed: int = 0
    truncated: bool = False
    #: Mean satisfaction of those completed; None where nothing is scored.
    satisfaction: float | None = None
    #: How often each choice, and each value of a scale, was given in those completed: by (question, choice)
    #: and (question, value).
    choices: Mapping[tuple[str, str], int]
    values: Mapping[tuple[str, int], int]


class SurveyStore(Protocol):
    """Figures of surveys, as `store.Store` has them."""

    def survey_counts(self, survey: str, span: Span | None, most: int) -> SurveyCounts:
        """The figures of a survey's responses, or of those completed in a span: of the newest `most`."""


def counted_condition(survey: str, span: Span | None) -> dict[str, Any]:
    """Which responses are counted."""
    if span is None:
        return {"keys.survey": survey}
    return {"keys.survey": survey, "keys.completed_at": {"$gte": span[0], "$lt": span[1]}}


def counts_pipeline(survey: str, span: Span | None, most: int) -> list[dict[str, Any]]:
    """What is asked of the database."""
    answers = {"$unwind": "$content.resource.answers"}
    answer = "$content.resource.answers"
    question = f"{answer}.question_id"
    # JSON leaves a value of 0 out.
    value = {"$ifNull": [f"{answer}.value", 0]}
    by_value = {"$group": {"_id": {"question": question, "value": value}, "count": {"$sum": 1}}}
    choice = {"question": question, "choice": f"{answer}.choice_ids"}
    done = {"$match": {"content.resource.completed": True}}
    return [
        {"$match": counted_condition(survey, span)},
        {"$sort": {"_id" if span is None else "keys.completed_at": -1}},
        {"$limit": most},
        {"$project": {f"content.resource.{name}": 1 for name in ("completed", "satisfaction", "answers")}},
        {
            "$facet": {
                "started": [{"$count": "count"}],
                "completed": [
                    done,
                    {
                        "$group": {
                            "_id": None,
                            "count": {"$sum": 1},
                            "satisfaction": {"$avg": "$content.resource.satisfaction"},
                        }
                    },
                ],
                "values": [done, answers, by_value],
                "choices": [
                    done,
                    answers,
                    {"$unwind": f"{answer}.choice_ids"},
                    {"$group": {"_id": choice, "count": {"$sum": 1}}},
                ],
            }
        },
    ]


class MongoSurveyStore:
    """Figures of surveys in MongoDB."""

    def survey_counts(self, survey: str, span: Span | None, most: int) -> SurveyCounts:
        """As the port says."""
        responses = RESPONSES.document._get_collection()
        [found] = responses.aggregate(counts_pipeline(survey, span, most))
        started = found["started"][0]["count"] if found["started"] else 0
        completed: dict[str, Any] = found["completed"][0] if found["completed"] else {}
        more = counted_condition(survey, span)
        return SurveyCounts(
            started=started,
            completed=completed.get("count", 0),
            truncated=started >= most and responses.count_documents(more, limit=most + 1) > most,
            satisfaction=completed.get("satisfaction"),
            choices={
                (raw["_id"]["question"], raw["_id"]["choice"]): raw["count"] for raw in found["choices"]
            },
            values={(raw["_id"]["question"], raw["_id"]["value"]): raw["count"] for raw in found["values"]},
        )
