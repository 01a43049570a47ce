"""SurveyService: closed questions with a time limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict, ParseDict

from callmesh.marketing.v1 import events_pb2, surveys_pb2, surveys_pb2_grpc
from chassis.auth import current_identity
from chassis.bus import Event
from chassis.clock import Clock
from chassis.errors import FailedPrecondition, InvalidArgument
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import new_id, parse_name, parse_names
from chassis.mongo import retry_conflicts
from chassis.pagination import Page
from marketing import convert
from marketing.engine import Problem
from marketing.kinds import RESPONSES, SURVEYS
from marketing.resources import (
    Desk,
    Resource,
    name_problems,
    span_problems,
    text_problems,
    texts_problems,
    turn,
)
from marketing.scopes import method
from marketing.shelf import Row, Shelves
from marketing.survey_store import SurveyCounts, SurveyStore

V = surveys_pb2
QUESTIONS_MAX = 50
CHOICES_MAX = 20
SCALE_MAX = 100
DEFAULT_LIMIT = timedelta(hours=24)
#: Newest responses counted in results, and the longest interval of them.
COUNTED_MAX = 500_000
LONGEST = timedelta(days=400)
TRANSITIONS: Mapping[tuple[int, str], int] = {
    (V.SURVEY_STATE_DRAFT, "open"): V.SURVEY_STATE_OPEN,
    (V.SURVEY_STATE_OPEN, "close"): V.SURVEY_STATE_CLOSED,
}


class SurveyStateError(FailedPrecondition):
    """{subject}: {why}."""

    reason = "SURVEY_STATE"


class ResponseCompleted(FailedPrecondition):
    """{subject}: {why}."""

    reason = "RESPONSE_COMPLETED"


class TimeLimitPassed(FailedPrecondition):
    """{subject}: {why}."""

    reason = "TIME_LIMIT_PASSED"


def survey_problems(message: Any) -> list[Problem]:
    """Everything wrong with a survey."""
    found = text_problems("display_name", message.display_name, 200, required=True)
    if not 1 <= len(message.questions) <= QUESTIONS_MAX:
        found.append(("questions", f"needs 1 to {QUESTIONS_MAX} questions"))
    ids = [question.question_id for question in message.questions]
    if len(set(ids)) < len(ids):
        found.append(("questions", "an id occurs twice"))
    for at, question in enumerate(message.questions[:QUESTIONS_MAX]):
        found += _question_problems(f"questions[{at}]", question)
    if message.HasField("time_limit") and message.time_limit.seconds < 1:
        found.append(("time_limit", "must be at least a second"))
    return found + span_problems("time_limit", message.time_limit)


def _question_problems(at: str, question: Any) -> list[Problem]:
    found: list[Problem] = []
    convert.checked_id(f"{at}.question_id", question.question_id, found)
    found += [(f"{at}.{field}", why) for field, why in texts_problems("texts", question.texts)]
    if question.kind == V.QUESTION_KIND_SCALE:
        if not -SCALE_MAX <= question.scale_min < question.scale_max <= SCALE_MAX:
            found.append((f"{at}.scale_max", "must be above scale_min, both within -100 to 100"))
    elif question.kind in (V.QUESTION_KIND_SINGLE_CHOICE, V.QUESTION_KIND_MULTIPLE_CHOICE):
        ids = [choice.choice_id for choice in question.choices]
        if not 2 <= len(ids) <= CHOICES_MAX or len(set(ids)) < len(ids):
            found.append((f"{at}.choices", f"needs 2 to {CHOICES_MAX} choices with ids of their own"))
        for number, choice in enumerate(question.choices[:CHOICES_MAX]):
            found += _choice_problems(f"{at}.choices[{number}]", choice)
    else:
        found.append((f"{at}.kind", "must be set"))
    return found


def _choice_problems(at: str, choice: Any) -> list[Problem]:
    found: list[Problem] = []
    convert.checked_id(f"{at}.choice_id", choice.choice_id, found)
    found += [(f"{at}.{field}", why) for field, why in texts_problems("texts", choice.texts)]
    if not 0 <= choice.score <= 1:
        found.append((f"{at}.score", "must be 0 to 1"))
    return found


def answer_problems(survey: Any, answers: Sequence[Any]) -> list[Problem]:
    """Everything wrong with answers."""
    found: list[Problem] = []
    questions = {question.question_id: question for question in survey.questions}
    for at, answer in enumerate(answers):
        question = questions.get(answer.question_id)
        where = f"answers[{at}]"
        if question is None:
            found.append((f"{where}.question_id", "is not a question of this survey"))
        elif question.kind == V.QUESTION_KIND_SCALE:
            if not question.scale_min <= answer.value <= question.scale_max:
                found.append((f"{where}.value", f"must be {question.scale_min} to {question.scale_max}"))
        else:
            known = {choice.choice_id for choice in question.choices}
            many = question.kind == V.QUESTION_KIND_MULTIPLE_CHOICE
            given = list(answer.choice_ids)
            if not set(given) <= known or len(set(given)) < len(given):
                found.append((f"{where}.choice_ids", "must be choices of the question, each once"))
            elif not many and len(given) != 1:
                found.append((f"{where}.choice_ids", "must be one choice"))
    return found


def satisfaction(survey: Any, answers: Mapping[str, Any]) -> float | None:
    """Mean score 0 to 1 over the scored questions answered; None when there is none."""
    scores = []
    for question in survey.questions:
        answer = answers.get(question.question_id)
        if not question.scored or answer is None:
            continue
        if question.kind == V.QUESTION_KIND_SCALE:
            scores.append((answer.value - question.scale_min) / (question.scale_max - question.scale_min))
        else:
            points = {choice.choice_id: choice.score for choice in question.choices}
            given = [points[id] for id in answer.choice_ids]
            scores.append(sum(given) / len(given) if given else 0.0)
    return sum(scores) / len(scores) if scores else None


class SurveyServicer(surveys_pb2_grpc.SurveyServiceServicer):
    """SurveyService."""

    def __init__(self, shelves: Shelves, store: SurveyStore, clock: Clock) -> None:
        self._shelves = shelves
        self._store = store
        self._clock = clock
        self._surveys = Desk(
            Resource(
                service="SurveyService",
                field="survey",
                kind=SURVEYS,
                message=V.Survey,
                problems=lambda message, _: survey_problems(message),
                fixed=frozenset({"state"}),
            ),
            shelves,
            clock,
        )

    def CreateSurvey(self, request: V.CreateSurveyRequest, context: Any) -> V.Survey:
        """Adds a draft."""

        def prepare(message: Any) -> Sequence[Event]:
            message.state = V.SURVEY_STATE_DRAFT
            return ()

        return self._surveys.create(request, prepare)

    def GetSurvey(self, request: V.GetSurveyRequest, context: Any) -> V.Survey:
        """Reads one."""
        return self._surveys.get(request)

    def ListSurveys(self, request: V.ListSurveysRequest, context: Any) -> V.ListSurveysResponse:
        """A page by id."""
        rows, token = self._surveys.list(request, {})
        return V.ListSurveysResponse(surveys=rows, next_page_token=token)

    def _draft(self, message: Any) -> None:
        if message.state != V.SURVEY_STATE_DRAFT:
            raise SurveyStateError(subject=message.name, why="it is not a DRAFT any more")

    def UpdateSurvey(self, request: V.UpdateSurveyRequest, context: Any) -> V.Survey:
        """Changes a draft."""
        return self._surveys.update(request, self._draft)

    def DeleteSurvey(self, request: V.DeleteSurveyRequest, context: Any) -> Empty:
        """Removes a draft."""
        self._surveys.delete(request, self._draft)
        return Empty()

    def OpenSurvey(self, request: V.OpenSurveyRequest, context: Any) -> V.Survey:
        """Takes answers from now on."""
        return self._go(request, "open")

    def CloseSurvey(self, request: V.CloseSurveyRequest, context: Any) -> V.Survey:
        """Takes no more answers."""
        return self._go(request, "close")

    def _go(self, request: Any, verb: str) -> Any:
        def change(message: Any) -> Sequence[Event]:
            turn(message, verb, TRANSITIONS, SurveyStateError)
            return ()

        return self._surveys.move(request, change)

    # responses

    def StartSurveyResponse(self, request: V.StartSurveyResponseRequest, context: Any) -> V.SurveyResponse:
        """Begins to ask a person; the time limit runs from now."""
        row = self._surveys.row(request.survey, "survey")
        survey, now = self._surveys.shown(row), self._clock.now()
        problems = name_problems("customer", "customers", request.customer)
        if request.call_id:
            convert.checked_id("call_id", request.call_id, problems)
        if problems:
            raise InvalidArgument.many(problems)
        if survey.state != V.SURVEY_STATE_OPEN:
            raise SurveyStateError(subject=request.survey, why="it is not OPEN")
        limit = survey.time_limit.ToTimedelta() if survey.HasField("time_limit") else DEFAULT_LIMIT
        id = new_id()
        response = V.SurveyResponse(
            name=f"surveys/{row.id}/responses/{id}",
            customer=request.customer,
            call_id=request.call_id,
            channel=request.channel,
            create_time=convert.timestamp(now),
            expire_time=convert.timestamp(now + limit),
        )
        key = request_key(
            current_identity(), method("SurveyService", "StartSurveyResponse"), request.request_id
        )
        stored, _ = self._shelves.insert(
            RESPONSES,
            Row(id=id, content=_kept(response), keys={"survey": row.id, "customer": request.customer}),
            now,
            request_key=key,
            fingerprint=content_fingerprint(request) if key is not None else None,
        )
        return _response(stored)

    def _found(self, name: str) -> Row:
        survey, id = parse_names("name", ("surveys", "responses"), name)
        row = self._shelves.get(RESPONSES, id)
        if row.keys["survey"] != survey:
            raise RESPONSES.missing(id)
        return row

    def AnswerSurvey(self, request: V.AnswerSurveyRequest, context: Any) -> V.SurveyResponse:
        """Takes answers; completes the response when every required one is there."""
        if not 1 <= len(request.answers) <= QUESTIONS_MAX:
            raise InvalidArgument(field="answers", why=f"must hold 1 to {QUESTIONS_MAX} answers")
        return retry_conflicts(lambda: self._answer(request))

    def _answer(self, request: Any) -> Any:
        row, now = self._found(request.name), self._clock.now()
        response = _response(row)
        survey = self._surveys.shown(self._shelves.get(SURVEYS, row.keys["survey"]))
        if response.completed:
            raise ResponseCompleted(subject=request.name, why="every required question is answered")
        if now >= convert.moment(response.expire_time):
            raise TimeLimitPassed(subject=request.name, why="its time limit has passed")
        if survey.state != V.SURVEY_STATE_OPEN:
            raise SurveyStateError(subject=survey.name, why="it is not OPEN")
        if problems := answer_problems(survey, request.answers):
            raise InvalidArgument.many(problems)
        answers = {answer.question_id: answer for answer in (*response.answers, *request.answers)}
        kept = V.SurveyResponse()
        kept.CopyFrom(response)
        del kept.answers[:]
        kept.answers.extend(answers.values())
        needed = {question.question_id for question in survey.questions if question.required}
        needed = needed or {question.question_id for question in survey.questions}
        events: list[Event] = []
        keys = dict(row.keys)
        if needed <= answers.keys():
            kept.completed = True
            kept.complete_time.FromDatetime(now)
            score = satisfaction(survey, answers)
            if score is not None:
                kept.satisfaction = score
            keys["completed_at"] = now
            events.append(_completed(kept, survey.name, score, now))
        stored = self._shelves.update(RESPONSES, replace(row, content=_kept(kept), keys=keys), now, events)
        return _response(stored)

    def GetSurveyResponse(self, request: V.GetSurveyResponseRequest, context: Any) -> V.SurveyResponse:
        """Reads one."""
        return _response(self._found(request.name))

    def ListSurveyResponses(
        self, request: V.ListSurveyResponsesRequest, context: Any
    ) -> V.ListSurveyResponsesResponse:
        """A page, newest first."""
        survey = self._surveys.row(request.parent, "parent")
        page = Page.of(request)
        found = self._shelves.find(
            RESPONSES, {"survey": survey.id}, page.limit + 1, after=page.value(str), order="-_id"
        )
        shown, token = page.cut(found, attrgetter("id"))
        return V.ListSurveyResponsesResponse(survey_responses=map(_response, shown), next_page_token=token)

    def GetSurveyResults(self, request: V.GetSurveyResultsRequest, context: Any) -> V.SurveyResults:
        """Counts by question and choice."""
        id = parse_name("survey", "surveys", request.survey)
        row = self._shelves.get(SURVEYS, id)
        survey = self._surveys.shown(row)
        found = self._store.survey_counts(id, self._span(request, row), COUNTED_MAX)
        results = V.SurveyResults(
            started_count=found.started, completed_count=found.completed, truncated=found.truncated
        )
        if found.satisfaction is not None:
            results.satisfaction = found.satisfaction
        for question in survey.questions:
            results.questions.append(_counts(question, found))
        return results

    def _span(self, request: Any, survey: Row) -> tuple[datetime, datetime] | None:
        """Which responses are asked for; None for all."""
        start, end = convert.interval_ends("interval", request.interval)
        if start is None and end is None:
            return None
        now = self._clock.now()
        age = (end or now) - (survey.created_at or now)
        whole = max(age, timedelta(milliseconds=1))
        return convert.span_of("interval", request.interval, now, whole, LONGEST)


def _counts(question: Any, counts: SurveyCounts) -> Any:
    found = V.QuestionResult(question_id=question.question_id)
    if question.kind != V.QUESTION_KIND_SCALE:
        given = {id: count for (asked, id), count in counts.choices.items() if asked == question.question_id}
        found.counts.update(given)
        return found
    values = {
        value: count for (asked, value), count in counts.values.items() if asked == question.question_id
    }
    found.counts.update({str(value): count for value, count in values.items()})
    if values:
        found.mean = sum(value * count for value, count in values.items()) / sum(values.values())
    return found


def _kept(response: Any) -> dict[str, Any]:
    return {"resource": MessageToDict(response, preserving_proto_field_name=True)}


def _response(row: Row) -> Any:
    message = V.SurveyResponse()
    ParseDict(row.content["resource"], message, ignore_unknown_fields=True)
    return message


def _completed(response: Any, survey: str, score: float | None, now: datetime) -> Event:
    message = events_pb2.SurveyCompleted(
        response=response.name,
        survey=survey,
        customer=response.customer,
        call_id=response.call_id,
        satisfaction=score,
        complete_time=convert.timestamp(now),
    )
    subject = response.customer or response.name
    return Event.of(message, source=convert.SOURCE, subject=subject, time=now)
