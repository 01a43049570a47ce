"""Knowledge: articles with versions, review and audience; search, suggestions, feedback, gaps; the expert
line.
Message stubs only; `servicer` puts the calls into the gRPC services.

Rules. An article is one record, its draft; what readers see is a version of its own that never changes. An
edit makes any article a draft again, and what is published stays so until a review publishes the next version
or somebody withdraws it. Nobody reviews what they wrote or changed (an open server knows no persons and can't
tell). Every replica looks twice a second for what was published or withdrawn, so it is found there within a
second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from google.protobuf.json_format import Parse

from callmesh.tickets.v1 import events_pb2, knowledge_pb2
from chassis.bus import Event
from chassis.callcontext import current_identity
from chassis.clock import Clock, from_ms
from chassis.errors import (
    AlreadyExists,
    EtagMismatch,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from chassis.fieldmask import apply_mask
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import new_id, parse_name, stable_id
from chassis.mongo import parse_etag, retry_conflicts
from chassis.pagination import Page
from tickets import convert, records
from tickets.feedback import Feedback, Searched
from tickets.filters import choice_field, enum_choices, list_field, name_field, text_field
from tickets.governing import VERSION_MARK
from tickets.handlers import Handlers
from tickets.lexicon import ArticleIndex, Entry, Found, passage, query_words, words
from tickets.records import Record, Records
from tickets.resources import Crud, Problem, Resource
from tickets.validation import label_problem, line_or_text, line_problem, text_problem

#: Largest body of an article, bytes.
BODY_BYTES_MAX = 262_144
#: Longest query, characters; most hits of a search, and of a suggestion.
QUERY_CHARACTERS_MAX, HITS_MAX, SUGGESTIONS_MAX = 512, 100, 20
#: Furthest hit that pages reach.
DEPTH_MAX = 1_000
#: Hits of a search, and suggestions, unless told otherwise.
HITS_DEFAULT, SUGGESTIONS_DEFAULT = 10, 5
#: Characters of a ticket's text that are looked at for suggestions.
SUGGEST_CHARACTERS_MAX = 2_000
#: Clocks of replicas differ by less; so far back each looks for changes, real ms.
OVERLAP_MS = 60_000
#: Articles read in one go.
LOAD_BATCH = 5_000
#: Most articles.
ARTICLES_MAX = 1_000_000
#: Most answers of a question.
ANSWERS_MAX = 100

_Article = knowledge_pb2.Article
_AUDIENCES = {
    knowledge_pb2.AUDIENCE_AGENTS: "agents",
    knowledge_pb2.AUDIENCE_EXPERTS: "experts",
    knowledge_pb2.AUDIENCE_CUSTOMERS: "customers",
}
_LANGUAGES = ("zh-CN", "en")


class OwnReview(FailedPrecondition):
    """{subject}: {why}."""

    reason = "OWN_REVIEW"


class WrongState(FailedPrecondition):
    """{subject}: {why}."""

    reason = "ILLEGAL_TRANSITION"


def audiences() -> list[str]:
    """What the caller may read."""
    identity = current_identity()
    found = ["customers"]
    if identity.has("tickets.read"):
        found.append("agents")
    if identity.has("tickets.knowledge"):
        found.append("experts")
    return found


def _problems(message: Any) -> list[Problem]:
    size = len(message.body.encode("utf-8", "surrogatepass"))
    checks: list[tuple[str, str | None]] = [
        ("title", line_problem(message.title, 200) if message.title.strip() else "must not be empty"),
        ("body", None if message.body.strip() else "must not be empty"),
        (
            "body",
            f"must be at most {BODY_BYTES_MAX} bytes in UTF-8, got {size}" if size > BODY_BYTES_MAX else None,
        ),
        ("language", None if message.language in _LANGUAGES else "must be zh-CN or en"),
        ("audience", None if message.audience in _AUDIENCES else "must be one of Audience"),
        ("category", label_problem(message.category) if message.category else None),
        ("tags", f"at most 32 are allowed, got {len(message.tags)}" if len(message.tags) > 32 else None),
        *((f"tags[{index}]", label_problem(tag)) for index, tag in enumerate(message.tags[:32])),
    ]
    return [(name, why) for name, why in checks if why]


_ARTICLE = Resource(
    kind="articles",
    field="article",
    message=_Article,
    updatable=frozenset(["title", "body", "language", "audience", "category", "tags"]),
    fields={
        "state": choice_field(enum_choices(_Article.State, "STATE_"), "STATE_"),
        "audience": choice_field(enum_choices(knowledge_pb2.Audience, "AUDIENCE_"), "AUDIENCE_"),
        "language": text_field(),
        "category": text_field(),
        "author": text_field(),
        "tags": list_field(),
    },
    problems=_problems,
)


class Articles(Crud):
    """Articles' drafts."""

    def changed(self, message: Any, record: Record) -> Record:
        """As for all, with who changed it since the last publication."""
        made = self.as_record(message, record.id, record)
        editors = {*record.search.get("editors", ()), current_identity().subject}
        return replace(made, search={**made.search, "editors": sorted(editors)})

    def as_record(self, message: Any, id: str, record: Record | None = None) -> Record:
        """As for all; which version is published, when that changed and by whom the draft was, stays."""
        made = super().as_record(message, id, record)
        before = record.search if record is not None else {}
        kept = {k: v for k, v in before.items() if k in ("published", "indexed_ms", "editors")}
        search = {
            "state": _Article.State.Name(message.state).removeprefix("STATE_"),
            "audience": knowledge_pb2.Audience.Name(message.audience).removeprefix("AUDIENCE_"),
            "language": message.language,
            "category": message.category or None,
            "author": message.author,
            "tags": list(message.tags) or None,
        }
        return replace(made, search={**kept, **{k: v for k, v in search.items() if v is not None}})


class Library:
    """The articles and their index. Safe for threads."""

    def __init__(self, store: Records, clock: Clock, feedback: Feedback) -> None:
        self.store = store
        self.clock = clock
        self.feedback = feedback
        self.articles = Articles(_ARTICLE, store, clock)
        self.index = ArticleIndex()
        self._known: dict[str, int] = {}
        self._since_ms = 0
        self._refreshing = threading.Lock()
        #: Whether everything that is published was read once.
        self.loaded = False

    # ---- freshness

    def refresh(self) -> int:
        """Takes into the index what was published or withdrawn since; how many. Unavailable, pymongo's
        errors."""
        with self._refreshing:
            started = int(time.time() * 1000)
            changed = self.store.since("articles", "indexed_ms", self._since_ms, ARTICLES_MAX)
            new = [(id, version) for id, version in changed if self._known.get(id, 0) < version]
            for start in range(0, len(new), LOAD_BATCH):
                self._take(new[start : start + LOAD_BATCH])
            self._since_ms = max(0, started - OVERLAP_MS)
            self.loaded = True
            return len(new)

    def _take(self, batch: Sequence[tuple[str, int]]) -> None:
        found = {one.id: one for one in self.store.many("articles", [id for id, _ in batch])}
        live = {id: int(one.search["published"]) for id, one in found.items() if one.search.get("published")}
        versions = self.store.many("articleVersions", [f"{id}{VERSION_MARK}{n}" for id, n in live.items()])
        entries = [_entry(self.version(record)) for record in versions]
        self.index.put(entries, gone=[id for id, _ in batch if id not in live])
        self._known.update({id: found[id].version if id in found else version for id, version in batch})

    # ---- readers

    def published(self, id: str, version: int = 0) -> Any:
        """What readers see of an article; NotFound, also for an audience that the caller is not of."""
        name = f"articles/{id}"
        record = self.store.find("articles", id)
        number = version or (int(record.search.get("published") or 0) if record is not None else 0)
        found = self.store.find("articleVersions", f"{id}{VERSION_MARK}{number}") if number else None
        if found is None or record is None or (not record.search.get("published") and not self._may_write()):
            raise NotFound(resource=name)
        message = self.version(found)
        readers = {_AUDIENCES[message.audience]}
        live = int(record.search.get("published") or number)
        if live != number:
            # an earlier version is for nobody whom the article is not for by now
            present = records.get(self.store, "articleVersions", f"{id}{VERSION_MARK}{live}")
            readers.add(_AUDIENCES[self.version(present).audience])
        if not readers <= set(audiences()):
            raise NotFound(resource=name)
        return message

    def _may_write(self) -> bool:
        return current_identity().has("tickets.knowledge")

    def version(self, record: Record) -> Any:
        """A published version as clients see it."""
        message = Parse(record.body, _Article(), ignore_unknown_fields=True)
        message.name = f"articles/{record.id.partition(VERSION_MARK)[0]}"
        message.create_time.FromMilliseconds(record.created_ms)
        message.publish_time.FromMilliseconds(record.updated_ms)
        message.update_time.FromMilliseconds(record.updated_ms)
        return message

    def rated(self, messages: Sequence[Any]) -> None:
        """Fills in how often each helped."""
        ratings = self.feedback.ratings([message.name.removeprefix("articles/") for message in messages])
        for message in messages:
            message.helpful_count, message.unhelpful_count = ratings.get(
                message.name.removeprefix("articles/"), (0, 0)
            )

    def search(self, wanted: Sequence[str], language: str, limit: int, offset: int = 0) -> list[Found]:
        """What the caller may read of it, best first. Unavailable while a replica that has just started still
        reads the articles."""
        if not self.loaded:
            raise Unavailable(why="the articles are being read", retry_seconds=1.0)
        return self.index.search(wanted, audiences(), language, limit, offset)

    def hits(self, found: Sequence[Found], wanted: Sequence[str]) -> list[Any]:
        """What was found, as clients see it."""
        shown = []
        for hit in found:
            message = _Article.FromString(hit.shown)
            matched = set(words(message.title)) & set(wanted)
            why = f"title: {', '.join(sorted(matched))}" if matched else "text"
            text = passage(message.body, wanted)
            message.ClearField("body")
            shown.append(
                knowledge_pb2.SearchArticlesResponse.Hit(
                    article=message, passage=text, score=hit.score, reason=why
                )
            )
        self.rated([hit.article for hit in shown])
        return shown

    # ---- writers

    def act(self, name: str, given: str, edit: Any) -> Any:
        """Takes an article's draft from one state to another: `edit(record, message)` changes the message and
        answers (what changes in `search`, the events)."""
        version = parse_etag("etag", given)

        def attempt() -> Any:
            record = self.articles.record(name)
            if version is not None and version != record.version:
                raise EtagMismatch(resource=name)
            message = self.articles.read(record)
            search, events = edit(record, message)
            changed = self.articles.as_record(message, record.id, record)
            changed = replace(changed, search={**changed.search, **search})
            return self.articles.read(self.store.update(changed, events))

        return attempt() if version is not None else retry_conflicts(attempt)

    def publish(self, record: Record, message: Any) -> tuple[dict[str, Any], list[Event]]:
        """The draft becomes the next version."""
        number = message.version + 1
        message.version, message.state, message.reviewer = (
            number,
            _Article.STATE_PUBLISHED,
            current_identity().subject,
        )
        now = self.clock.now_ms()
        body = _Article()
        body.CopyFrom(message)
        for field in ("name", "etag", "create_time", "update_time", "publish_time", "review_reason"):
            body.ClearField(field)
        version = replace(
            self.articles.as_record(body, f"{record.id}{VERSION_MARK}{number}"),
            kind="articleVersions",
            search={"article": record.id},
            created_ms=record.created_ms,
            updated_ms=now,
        )
        self._put(version)
        return {**self._indexed(number), "editors": []}, [self._event(record.id, number, True)]

    def _put(self, version: Record) -> None:
        try:
            self.store.insert(version)
        except AlreadyExists:  # left by a crash before the article named it
            dangling = records.get(self.store, version.kind, version.id)
            self.store.update(replace(version, version=dangling.version))

    def withdraw(self, record: Record, message: Any) -> tuple[dict[str, Any], list[Event]]:
        """What is published is out of use."""
        if not record.search.get("published"):
            raise WrongState(subject=f"articles/{record.id}", why="is not published")
        message.state = _Article.STATE_WITHDRAWN
        return self._indexed(0), [self._event(record.id, message.version, False)]

    def _indexed(self, published: int) -> dict[str, Any]:
        return {"published": published, "indexed_ms": int(time.time() * 1000)}

    def _event(self, id: str, version: int, published: bool) -> Event:
        now = self.clock.now_ms()
        message = events_pb2.ArticlePublished(
            article=f"articles/{id}", version=version, published=published, time=convert.stamp(now)
        )
        return Event.of(message, source=convert.SERVICE, subject=f"articles/{id}", time=from_ms(now))


def _entry(message: Any) -> Entry:
    return Entry(
        id=message.name.removeprefix("articles/"),
        audience=_AUDIENCES.get(message.audience, "agents"),
        language=message.language,
        title=message.title,
        body=message.body,
        labels=(message.category, *message.tags),
        shown=message.SerializeToString(),
    )


class KnowledgeCalls:
    """KnowledgeService."""

    def __init__(self, library: Library, handlers: Handlers) -> None:
        self._library = library
        self._handlers = handlers

    def CreateArticle(self, request: Any, context: Any) -> Any:
        """Writes a new article as a draft."""

        def prepare(message: Any) -> None:
            message.state, message.author = _Article.STATE_DRAFT, current_identity().subject
            message.audience = message.audience or knowledge_pb2.AUDIENCE_AGENTS

        return self._library.articles.create(request, "CreateArticle", prepare)

    def GetArticle(self, request: Any, context: Any) -> Any:
        """One article: its published version, or its draft for those who may see it."""
        id = self._library.articles.id_of(request.name)
        if request.version < 0:
            raise InvalidArgument(field="version", why="must not be negative")
        if request.draft:
            if not current_identity().has("tickets.knowledge"):
                raise NotFound(resource=request.name)
            message = self._library.articles.get(request)
        else:
            message = self._library.published(id, request.version)
        self._library.rated([message])
        return message

    def ListArticles(self, request: Any, context: Any) -> knowledge_pb2.ListArticlesResponse:
        """A page of articles' drafts, without bodies."""
        found, token = self._library.articles.list(request)
        for message in found:
            message.ClearField("body")
        self._library.rated(found)
        return knowledge_pb2.ListArticlesResponse(articles=found, next_page_token=token)

    def UpdateArticle(self, request: Any, context: Any) -> Any:
        """Changes the draft."""
        patch, articles = request.article, self._library.articles

        def edit(message: Any) -> None:
            apply_mask(message, patch, request.update_mask, allowed=articles.resource.updatable)
            message.state = _Article.STATE_DRAFT

        return articles.change(patch.name, patch.etag, edit, field="article.name")

    def SubmitArticle(self, request: Any, context: Any) -> Any:
        """Hands the draft to review."""

        def edit(record: Record, message: Any) -> tuple[dict[str, Any], list[Event]]:
            if message.state != _Article.STATE_DRAFT:
                raise WrongState(subject=request.name, why="only a draft is submitted")
            message.state = _Article.STATE_IN_REVIEW
            return {}, []

        return self._library.act(request.name, request.etag, edit)

    def ReviewArticle(self, request: Any, context: Any) -> Any:
        """Publishes or rejects a draft in review."""
        if problem := line_or_text(request.reason):
            raise InvalidArgument(field="reason", why=problem)
        if not request.approve and not request.reason.strip():
            raise InvalidArgument(field="reason", why="is required when an article is sent back")
        identity = current_identity()

        def edit(record: Record, message: Any) -> tuple[dict[str, Any], list[Event]]:
            if message.state != _Article.STATE_IN_REVIEW:
                raise WrongState(subject=request.name, why="is not in review")
            wrote = {message.author, *record.search.get("editors", ())}
            if identity.subject in wrote and "*" not in identity.scopes:
                raise OwnReview(subject=request.name, why="who wrote or changed it cannot review it")
            message.review_reason = request.reason
            if request.approve:
                return self._library.publish(record, message)
            message.state = _Article.STATE_DRAFT
            return {}, []

        made = self._library.act(request.name, request.etag, edit)
        self._library.refresh()
        return made

    def WithdrawArticle(self, request: Any, context: Any) -> Any:
        """Takes a published article out of use."""
        made = self._library.act(request.name, request.etag, self._library.withdraw)
        self._library.refresh()
        return made

    def ListArticleVersions(self, request: Any, context: Any) -> knowledge_pb2.ListArticleVersionsResponse:
        """Earlier versions of an article, newest first; all are few, so the page is cut from all."""
        id = self._library.articles.id_of(request.parent, "parent")
        record = records.get(self._library.store, "articles", id)
        page = Page.of(request)
        last = self._library.articles.read(record).version
        first = (page.value(int) or last + 1) - 1
        numbers = list(range(first, max(0, first - page.limit), -1))
        stored = {
            one.id: one
            for one in self._library.store.many(
                "articleVersions", [f"{id}{VERSION_MARK}{n}" for n in numbers]
            )
        }
        shown = [stored[f"{id}{VERSION_MARK}{n}"] for n in numbers if f"{id}{VERSION_MARK}{n}" in stored]
        messages = [self._library.version(one) for one in shown]
        for message in messages:
            message.ClearField("body")
        token = page.next_token(numbers[-1] if numbers and numbers[-1] > 1 else None)
        return knowledge_pb2.ListArticleVersionsResponse(versions=messages, next_page_token=token)

    def SearchArticles(self, request: Any, context: Any) -> knowledge_pb2.SearchArticlesResponse:
        """Full-text search, best first."""
        query = request.query
        if not query.strip() or len(query) > QUERY_CHARACTERS_MAX:
            raise InvalidArgument(field="query", why=f"must have 1 to {QUERY_CHARACTERS_MAX} characters")
        if request.language and request.language not in _LANGUAGES:
            raise InvalidArgument(field="language", why="must be zh-CN, en or empty")
        page = Page.of(request, default=HITS_DEFAULT, maximum=HITS_MAX)
        offset = page.value(int) or 0
        if not 0 <= offset <= DEPTH_MAX:
            raise InvalidArgument(field="page_token", why="is not a token that this list gave out")
        wanted = query_words(query)
        found = self._library.search(wanted, request.language, page.limit + 1, offset)
        shown = self._library.hits(found[: page.limit], wanted)
        more = len(found) > page.limit and offset + page.limit <= DEPTH_MAX
        search_id = stable_id("search", " ".join(wanted)) if wanted else ""
        if wanted and not offset:
            said = " ".join(query.split())[:QUERY_CHARACTERS_MAX]
            self._library.feedback.searched(Searched(id=search_id, query=said, empty=not found))
        token = page.next_token(offset + page.limit if more else None)
        return knowledge_pb2.SearchArticlesResponse(hits=shown, next_page_token=token, search_id=search_id)

    def SuggestArticles(self, request: Any, context: Any) -> knowledge_pb2.SearchArticlesResponse:
        """Articles that may answer a ticket or a text."""
        if bool(request.ticket) == bool(request.text):
            raise InvalidArgument(field="text", why="exactly one of ticket and text is required")
        if problem := text_problem(request.text):
            raise InvalidArgument(field="text", why=problem)
        if not 0 <= request.page_size <= SUGGESTIONS_MAX:
            raise InvalidArgument(field="page_size", why=f"must be 1 to {SUGGESTIONS_MAX}, or 0")
        text = request.text
        if request.ticket:
            draft = self._handlers.get(parse_name("ticket", "tickets", request.ticket)).draft
            text = f"{draft.subject} {draft.category} {draft.description}"
        wanted = query_words(text[:SUGGEST_CHARACTERS_MAX])
        limit = request.page_size or SUGGESTIONS_DEFAULT
        found = self._library.search(wanted, "", limit)
        return knowledge_pb2.SearchArticlesResponse(hits=self._library.hits(found, wanted))

    def RateArticle(self, request: Any, context: Any) -> knowledge_pb2.RateArticleResponse:
        """Says whether an article helped."""
        id = self._library.articles.id_of(request.name)
        self._library.published(id)
        convert.read_optional_name("ticket", "tickets", request.ticket)
        if len(request.comment) > 4_096 or text_problem(request.comment):
            raise InvalidArgument(
                field="comment", why="must be at most 4096 characters without control characters"
            )
        if len(request.search_id) > 64:
            raise InvalidArgument(field="search_id", why="is not one that a search gave out")
        self._library.feedback.rate(id, request.helpful, request.search_id)
        return knowledge_pb2.RateArticleResponse()

    def ListKnowledgeGaps(self, request: Any, context: Any) -> knowledge_pb2.ListKnowledgeGapsResponse:
        """Searches that found no good answer, most frequent first."""
        page = Page.of(request)
        since = convert.read_stamp(request.since_time) if request.HasField("since_time") else 0
        found = self._library.feedback.gaps(since, page.limit + 1, page.key(int, str))
        shown, token = page.cut(found, attrgetter("search_count", "id"))
        gaps = [
            knowledge_pb2.ListKnowledgeGapsResponse.Gap(
                query=gap.query,
                search_count=gap.search_count,
                empty_count=gap.empty_count,
                unhelpful_count=gap.unhelpful_count,
            )
            for gap in shown
        ]
        return knowledge_pb2.ListKnowledgeGapsResponse(gaps=gaps, next_page_token=token)


# ---- the expert line


def _question_problems(message: Any) -> list[Problem]:
    checks: list[tuple[str, str | None]] = [
        ("title", line_problem(message.title, 200) if message.title.strip() else "must not be empty"),
        ("body", text_problem(message.body)),
        ("category", label_problem(message.category) if message.category else None),
    ]
    return [(name, why) for name, why in checks if why]


_QUESTION = Resource(
    kind="questions",
    field="question",
    message=knowledge_pb2.Question,
    updatable=frozenset({"title", "body", "ticket", "category"}),
    fields={
        "state": choice_field(enum_choices(knowledge_pb2.Question.State, "STATE_"), "STATE_"),
        "category": text_field(),
        "author": text_field(),
        "ticket": name_field("tickets"),
    },
    problems=_question_problems,
    search=lambda message: {
        "state": knowledge_pb2.Question.State.Name(message.state).removeprefix("STATE_"),
        "category": message.category,
        "author": message.author,
        "ticket": message.ticket.removeprefix("tickets/"),
    },
)


class ExpertCalls:
    """ExpertService."""

    def __init__(self, library: Library, handlers: Handlers) -> None:
        self._library = library
        self._handlers = handlers
        self._questions = Crud(_QUESTION, library.store, library.clock)

    def CreateQuestion(self, request: Any, context: Any) -> Any:
        """Asks a question."""
        if request.question.ticket:
            self._handlers.get(parse_name("question.ticket", "tickets", request.question.ticket))

        def prepare(message: Any) -> None:
            message.state, message.author = knowledge_pb2.Question.STATE_OPEN, current_identity().subject

        return self._questions.create(request, "CreateQuestion", prepare)

    def GetQuestion(self, request: Any, context: Any) -> Any:
        """One question with its answers."""
        return self._questions.get(request)

    def ListQuestions(self, request: Any, context: Any) -> knowledge_pb2.ListQuestionsResponse:
        """A page of questions, without answers' bodies."""
        found, token = self._questions.list(request)
        for message in found:
            for answer in message.answers:
                answer.ClearField("body")
        return knowledge_pb2.ListQuestionsResponse(questions=found, next_page_token=token)

    def AnswerQuestion(self, request: Any, context: Any) -> Any:
        """Answers a question."""
        problem = text_problem(request.body) if request.body.strip() else "must not be empty"
        if problem:
            raise InvalidArgument(field="body", why=problem)
        key = request_key(current_identity(), "AnswerQuestion", request.request_id)
        answer_id = key or new_id()

        def edit(message: Any) -> None:
            if any(answer.answer_id == answer_id for answer in message.answers):
                return
            if message.state == knowledge_pb2.Question.STATE_CLOSED:
                raise WrongState(subject=request.name, why="is closed")
            if len(message.answers) >= ANSWERS_MAX:
                raise WrongState(subject=request.name, why=f"has {ANSWERS_MAX} answers")
            message.state = knowledge_pb2.Question.STATE_ANSWERED
            answer = message.answers.add(
                answer_id=answer_id, body=request.body, author=current_identity().subject
            )
            answer.create_time.FromMilliseconds(self._library.clock.now_ms())

        return self._questions.change(request.name, "", edit)

    def AcceptAnswer(self, request: Any, context: Any) -> Any:
        """Says which answer it was; closes the question."""

        def edit(message: Any) -> None:
            if request.answer_id not in [answer.answer_id for answer in message.answers]:
                raise InvalidArgument(field="answer_id", why="is not of the question")
            for answer in message.answers:
                answer.accepted = answer.answer_id == request.answer_id
            message.state = knowledge_pb2.Question.STATE_CLOSED

        return self._questions.change(request.name, request.etag, edit)

    def ConvertQuestion(self, request: Any, context: Any) -> Any:
        """Makes an article's draft of a question and its accepted answer; a repeat answers the same one."""
        question = self._questions.get(request)
        accepted = next((answer for answer in question.answers if answer.accepted), None)
        if accepted is None:
            raise WrongState(subject=request.name, why="has no accepted answer")
        if request.audience not in knowledge_pb2.Audience.values():
            raise InvalidArgument(field="audience", why="must be one of Audience")
        text = f"{question.body}\n\n{accepted.body}".strip()
        chinese = any("\u4e00" <= character <= "\u9fff" for character in question.title + text)
        message = _Article(
            title=question.title,
            body=text,
            language="zh-CN" if chinese else "en",
            audience=request.audience or knowledge_pb2.AUDIENCE_AGENTS,
            category=question.category,
            state=_Article.STATE_DRAFT,
            author=current_identity().subject,
        )
        articles = self._library.articles
        articles.check(message)
        # one question makes one article: its id depends on the question alone
        id = "question-" + question.name.removeprefix("questions/")
        key = request_key(current_identity(), "ConvertQuestion", request.request_id)
        fingerprint = content_fingerprint(request) if key else None
        try:
            record, _ = self._library.store.insert(
                articles.as_record(message, id), request_key=key, fingerprint=fingerprint
            )
        except AlreadyExists:
            record = records.get(self._library.store, "articles", id)

        def name_it(stored: Any) -> None:
            stored.article = f"articles/{record.id}"

        self._questions.change(request.name, "", name_it)
        return articles.read(record)
