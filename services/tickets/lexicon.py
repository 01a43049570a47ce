"""Words of Chinese and English texts, and the full-text index over them (tantivy; jieba's words for Chinese).

One index a process, in memory, rebuilt at the start: what is published is small beside what a process may
hold,
and so every replica answers by itself.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import rjieba
import tantivy

#: Characters of a text that are looked at.
TEXT_CHARACTERS_MAX = 65_536
#: Different words of a query that are looked for.
QUERY_WORDS_MAX = 32
#: What the index may use while it writes, bytes.
WRITER_BYTES = 32_000_000
#: Length of a passage, characters.
PASSAGE_CHARACTERS = 160

#: Words that say little by themselves.
_STOP = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "can",
        "do",
        "does",
        "for",
        "from",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "is",
        "it",
        "my",
        "not",
        "of",
        "on",
        "or",
        "our",
        "the",
        "this",
        "to",
        "was",
        "we",
        "what",
        "when",
        "where",
        "which",
        "who",
        "why",
        "will",
        "with",
        "you",
        "your",
        "的",
        "了",
        "吗",
        "呢",
        "吧",
        "啊",
        "我",
        "你",
        "他",
        "她",
        "它",
        "们",
        "我们",
        "你们",
        "他们",
        "是",
        "在",
        "有",
        "和",
        "与",
        "及",
        "或",
        "也",
        "都",
        "就",
        "还",
        "要",
        "会",
        "能",
        "可以",
        "请",
        "请问",
        "怎么",
        "怎么办",
        "怎样",
        "如何",
        "什么",
        "哪",
        "哪里",
        "哪个",
        "为什么",
        "一个",
        "这",
        "那",
        "这个",
        "那个",
        "没有",
        "不",
        "被",
        "把",
        "对",
        "从",
        "到",
    ]
)

_analyzer = (
    tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace())
    .filter(tantivy.Filter.lowercase())
    .filter(tantivy.Filter.stemmer("english"))
    .build()
)


def words(text: str) -> list[str]:
    """The words of a text as they are indexed, in order: lower case, English ones without endings."""
    plain = unicodedata.normalize("NFKC", text[:TEXT_CHARACTERS_MAX]).lower()
    cut = rjieba.cut_for_search(plain, True)
    found = " ".join(word for word in cut if any(character.isalnum() for character in word))
    return list(_analyzer.analyze(found))


def query_words(text: str) -> list[str]:
    """The different words to look for, those that say little left out where others remain."""
    found = list(dict.fromkeys(words(text)))
    telling = [word for word in found if word not in _STOP]
    return (telling or found)[:QUERY_WORDS_MAX]


def passage(text: str, wanted: Sequence[str]) -> str:
    """A stretch of a text around the first of the words, as plain text on one line."""
    low = text.lower()
    at = min((place for word in wanted if (place := low.find(word)) >= 0), default=0)
    start = max(0, at - PASSAGE_CHARACTERS // 4)
    line = " ".join(text[start : start + PASSAGE_CHARACTERS].split())
    return ("…" if start else "") + line + ("…" if start + PASSAGE_CHARACTERS < len(text) else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A published article as it is found."""

    #: Its id.
    id: str
    #: Who may read it: `customers`, `agents`, `experts`.
    audience: str
    language: str
    title: str
    body: str
    #: Category and tags.
    labels: tuple[str, ...] = ()
    #: What comes back when it is found.
    shown: bytes = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """An article that was found."""

    id: str
    #: Greater is better; comparable within one answer only.
    score: float
    #: As it was put in.
    shown: bytes = b""


#: How much a word counts, by where it stands.
_BOOSTS = (("title", 3.0), ("labels", 2.0), ("body", 1.0))


class ArticleIndex:
    """The index. Safe for threads: one writes, many search."""

    def __init__(self) -> None:
        builder = tantivy.SchemaBuilder()
        for name in ("id", "audience", "language"):
            builder.add_text_field(name, stored=name == "id", tokenizer_name="raw", index_option="basic")
        for name, _ in _BOOSTS:
            builder.add_text_field(name, stored=False, tokenizer_name="whitespace", index_option="freq")
        builder.add_bytes_field("shown", stored=True)
        self._schema = builder.build()
        self._index = tantivy.Index(self._schema)
        self._writer = self._index.writer(WRITER_BYTES, 1)
        self._lock = threading.Lock()

    def put(self, entries: Iterable[Entry], gone: Iterable[str] = ()) -> None:
        """Adds or replaces articles and removes others; found, or not, from the return on."""
        with self._lock:
            for id in gone:
                self._writer.delete_documents_by_term("id", id)
            for entry in entries:
                self._writer.delete_documents_by_term("id", entry.id)
                self._writer.add_document(self._document(entry))
            self._writer.commit()
            self._index.reload()

    def _document(self, entry: Entry) -> tantivy.Document:
        return tantivy.Document(
            id=[entry.id],
            audience=[entry.audience],
            language=[entry.language.lower()],
            title=[" ".join(words(entry.title))],
            labels=[" ".join(words(" ".join(entry.labels)))],
            body=[" ".join(words(entry.body))],
            shown=entry.shown,
        )

    def search(
        self, wanted: Sequence[str], audiences: Iterable[str], language: str, limit: int, offset: int = 0
    ) -> list[Found]:
        """The best articles for some words, best first; language empty: all."""
        if not wanted:
            return []
        schema, occur = self._schema, tantivy.Occur
        terms = [
            (
                occur.Should,
                tantivy.Query.boost_query(tantivy.Query.term_query(schema, field, word, "freq"), boost),
            )
            for word in wanted
            for field, boost in _BOOSTS
        ]
        allowed = tantivy.Query.term_set_query(schema, "audience", list(audiences))
        clauses = [(occur.Must, tantivy.Query.boolean_query(terms))]
        clauses.append((occur.Must, tantivy.Query.const_score_query(allowed, 0.0)))
        if language:
            only = tantivy.Query.term_query(schema, "language", language.lower())
            clauses.append((occur.Must, tantivy.Query.const_score_query(only, 0.0)))
        searcher = self._index.searcher()
        hits = searcher.search(tantivy.Query.boolean_query(clauses), limit, True, offset=offset).hits
        found = []
        for score, place in hits:
            stored = searcher.doc(place)
            shown = bytes(stored["shown"][0])
            found.append(Found(id=stored["id"][0], score=float(score), shown=shown))
        return found
