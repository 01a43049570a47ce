"""The rule language of offers, segments and campaign phases. Pure.

A rule is one expression that is true or false of a customer in a contact:

tier in ["gold", "platinum"] and not owns("broadband") and months_since_purchase("phone") > 12

1. It has the form of a Python expression and is read by Python's own parser, but nothing of Python is ever
   run: only the node kinds in `_Compiler` are known, each is turned into a small function here, and every
   name comes from `NAMES` or `FUNCTIONS`. Whatever else is in the tree is a syntax error with its place.
2. Everything has one of three types, text, number and truth; comparing different ones is an error, found
   before any customer is looked at. So evaluating a rule cannot fail.
3. Length, number of nodes and depth are bounded, and there are no loops: the time a rule takes is bounded
   too.
4. A rule that can never be true, or never false, is found by trying every combination of values that it can
   tell apart. Parts that look at different things are tried by themselves, so that a long rule is no harder
   than its most entangled part; a part with more than `COMBINATIONS_MAX` combinations is left undecided.
"""

from __future__ import annotations

import ast
import enum
import io
import itertools
import math
import operator
import tokenize
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from marketing.model import Contact, Profile, primary_language

#: Longest rule, characters.
RULE_CHARACTERS_MAX = 4_000
#: Most nodes of a rule's tree.
NODES_MAX = 500
#: Deepest nesting.
DEPTH_MAX = 40
#: Most combinations of values tried when looking for rules that never or always match.
COMBINATIONS_MAX = 20_000
#: Compiled rules kept.
COMPILED_MAX = 4_096
#: Mean length of a month, days (Gregorian).
MONTH_DAYS = 30.436875

_DAY_SECONDS = 86_400
_MONTH_SECONDS = MONTH_DAYS * _DAY_SECONDS


class Kind(enum.Enum):
    """Type of an expression."""

    TEXT = "text"
    NUMBER = "number"
    TRUTH = "truth"


class Facts(Protocol):
    """What a rule is judged by."""

    def value(self, name: str) -> Any:
        """Value of a name of `NAMES`, in its type."""

    def call(self, name: str, argument: str) -> Any:
        """Value of a function of `FUNCTIONS`, in its type."""


#: What a rule may name, with its type and meaning.
NAMES: Mapping[str, tuple[Kind, str]] = {
    "tier": (Kind.TEXT, 'customer tier, lower-case, "" unknown'),
    "value_class": (Kind.TEXT, '"A" to "F", "" unknown'),
    "language": (Kind.TEXT, 'of the conversation, else the customer\'s: "zh"'),
    "region": (Kind.TEXT, 'of the contact, else the customer\'s: "regions/beijing"'),
    "channel": (Kind.TEXT, 'of the contact: "VOICE"'),
    "contact_reason": (Kind.TEXT, "why the customer called"),
    "wants_to_leave": (Kind.TRUTH, "the customer said so"),
    "churn_risk": (Kind.NUMBER, "how likely the customer is to leave, 0 to 1, as crm told last"),
    "known": (Kind.TRUTH, "the customer is known at all"),
    "product_count": (Kind.NUMBER, "how many products the customer has"),
    "days_since_complaint": (Kind.NUMBER, "since a complaint was last resolved; infinite when none was"),
}
#: The functions, each of one text in quotes.
FUNCTIONS: Mapping[str, tuple[Kind, str]] = {
    "owns": (Kind.TRUTH, "the customer has the product"),
    "tagged": (Kind.TRUTH, "the customer carries the tag"),
    "asked": (Kind.TRUTH, "the product was asked about in this contact"),
    "care": (Kind.TRUTH, 'crm sees this occasion now: "CONTRACT_EXPIRES"'),
    "months_since_purchase": (Kind.NUMBER, "since the product was bought last; infinite when never"),
}
#: Further function of a campaign's phases.
PHASE_FUNCTIONS: Mapping[str, tuple[Kind, str]] = {
    **FUNCTIONS,
    "response": (Kind.TEXT, 'what the person answered in a phase: "interested"; "" for nothing'),
}
#: Values of a name where they are known beforehand.
_DOMAINS: Mapping[str, tuple[str, ...]] = {
    "value_class": ("", *"ABCDEF"),
    "channel": ("UNSPECIFIED", "VOICE", "CHAT", "SMS", "EMAIL", "VISIT"),
}
#: Largest value of a number where there is one.
_MOST: Mapping[str, float] = {"churn_risk": 1.0}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleProblem:
    """One thing wrong with a rule."""

    #: 0-based offset of the first character concerned.
    offset: int
    #: RULE_SYNTAX, RULE_UNKNOWN_NAME, RULE_TYPE, RULE_NEVER_MATCHES or RULE_ALWAYS_MATCHES.
    code: str
    #: In English.
    message: str

    @property
    def harmless(self) -> bool:
        """A rule that always matches is of no use, and does no harm."""
        return self.code == "RULE_ALWAYS_MATCHES"

    @property
    def told(self) -> str:
        """What is wrong with the field that the rule stands in."""
        return f"{self.code} at character {self.offset} of the rule, counted from 0: {self.message}"


class RuleError(ValueError):
    """A rule that cannot be used; `problem` says why and where."""

    def __init__(self, problem: RuleProblem) -> None:
        super().__init__(f"at character {problem.offset}: {problem.message}")
        self.problem = problem


#: A compiled expression.
Judge = Callable[[Facts], Any]
#: What a rule looks at: a name, or a function and its argument.
Key = tuple[str, str]
#: In place of the argument: a function of anything.
ANY = "*"
#: What is so where a rule is asked of a customer who is not in touch just now: segments and phases.
NOT_IN_TOUCH: Mapping[Key, tuple[Any, ...]] = {
    ("channel", ""): ("UNSPECIFIED",),
    ("contact_reason", ""): ("",),
    ("asked", ANY): (False,),
    ("known", ""): (True,),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A rule that may be used."""

    #: As written.
    text: str
    #: The rule as a function.
    matches: Callable[[Facts], bool]
    #: What it looks at, and the constants that each is compared with.
    constants: Mapping[Key, tuple[Any, ...]]
    #: Whether some comparison is between two values that are both looked up.
    crossed: bool = False


@dataclass(kw_only=True, slots=True)
class _Compiler:
    text: str
    functions: Mapping[str, tuple[Kind, str]]
    constants: dict[Key, list[Any]] = field(default_factory=dict)
    crossed: bool = False

    def fail(self, node: ast.AST, code: str, message: str) -> RuleError:
        line = self.text.split("\n")[0] if getattr(node, "lineno", 1) == 1 else self.text
        ahead = line.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore")
        return RuleError(RuleProblem(offset=len(ahead), code=code, message=message))

    def compile(self, node: ast.expr) -> tuple[Kind, Judge, Key | None]:
        """(type, function, what it looks up if that is all it does)."""
        match node:
            case ast.BoolOp():
                return Kind.TRUTH, self._junction(node), None
            case ast.UnaryOp(op=ast.Not()):
                inner = self._truth(node.operand)
                return Kind.TRUTH, lambda facts: not inner(facts), None
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return self._constant(node, -number)
            case ast.Compare():
                return Kind.TRUTH, self._comparison(node), None
            case ast.Constant(value=value):
                return self._constant(node, value)
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.Call():
                return self._call(node)
        raise self.fail(node, "RULE_SYNTAX", "this is not part of the rule language")

    def _truth(self, node: ast.expr) -> Judge:
        kind, judge, _ = self.compile(node)
        if kind is not Kind.TRUTH:
            raise self.fail(node, "RULE_TYPE", f"must be true or false, is a {kind.value}")
        return judge

    def _junction(self, node: ast.BoolOp) -> Judge:
        parts = tuple(self._truth(value) for value in node.values)
        if isinstance(node.op, ast.And):
            return lambda facts: all(part(facts) for part in parts)
        return lambda facts: any(part(facts) for part in parts)

    def _constant(self, node: ast.expr, value: Any) -> tuple[Kind, Judge, Key | None]:
        if isinstance(value, bool):
            return Kind.TRUTH, lambda _: value, None
        if isinstance(value, str):
            return Kind.TEXT, lambda _: value, None
        if isinstance(value, int | float) and abs(value) <= 1e15:
            return Kind.NUMBER, lambda _: value, None
        raise self.fail(node, "RULE_SYNTAX", "only texts, numbers up to 10^15, True and False are values")

    def _name(self, node: ast.expr, name: str) -> tuple[Kind, Judge, Key | None]:
        if name in self.functions:
            raise self.fail(node, "RULE_TYPE", f'{name} needs a text in quotes: {name}("...")')
        if name not in NAMES:
            raise self.fail(node, "RULE_UNKNOWN_NAME", f"{name} is not known; there are {', '.join(NAMES)}")
        self.constants.setdefault((name, ""), [])
        return NAMES[name][0], lambda facts: facts.value(name), (name, "")

    def _call(self, node: ast.Call) -> tuple[Kind, Judge, Key | None]:
        if not isinstance(node.func, ast.Name):
            raise self.fail(node, "RULE_SYNTAX", "this is not part of the rule language")
        name = node.func.id
        if name not in self.functions:
            raise self.fail(
                node, "RULE_UNKNOWN_NAME", f"{name}() is not known; there are {', '.join(self.functions)}"
            )
        match node.args:
            case [ast.Constant(value=str() as argument)] if argument and not node.keywords:
                key = (name, argument)
                self.constants.setdefault(key, [])
                return self.functions[name][0], lambda facts: facts.call(name, argument), key
        raise self.fail(node, "RULE_TYPE", f"{name}() takes one text in quotes")

    def _comparison(self, node: ast.Compare) -> Judge:
        if len(node.ops) != 1:
            raise self.fail(node, "RULE_SYNTAX", "compare two values at a time, joined by and")
        operation, right = node.ops[0], node.comparators[0]
        if isinstance(operation, ast.In | ast.NotIn):
            return self._membership(node.left, right, isinstance(operation, ast.In))
        compare = _COMPARE.get(type(operation))
        if compare is None:
            raise self.fail(node, "RULE_SYNTAX", "comparisons are ==, !=, <, <=, >, >=, in and not in")
        kind, left, key = self.compile(node.left)
        other_kind, other, other_key = self.compile(right)
        if kind is not other_kind:
            raise self.fail(right, "RULE_TYPE", f"a {kind.value} is compared with a {other_kind.value}")
        if kind is not Kind.NUMBER and not isinstance(operation, ast.Eq | ast.NotEq):
            raise self.fail(node, "RULE_TYPE", f"only numbers have an order, this is a {kind.value}")
        self._note(key, right)
        self._note(other_key, node.left)
        self.crossed |= key is not None and other_key is not None
        return lambda facts: compare(left(facts), other(facts))

    def _note(self, key: Key | None, node: ast.expr) -> None:
        """Remembers the constant that something is compared with."""
        if key is None:
            return
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, node = -1, node.operand
        if isinstance(node, ast.Constant):
            self.constants[key].append(
                node.value if isinstance(node.value, str | bool) else sign * node.value  # type: ignore[operator]
            )

    def _membership(self, left: ast.expr, right: ast.expr, wanted: bool) -> Judge:
        kind, judge, key = self.compile(left)
        if not isinstance(right, ast.List | ast.Tuple) or not right.elts:
            raise self.fail(right, "RULE_TYPE", "in needs a list of values in brackets")
        values = []
        for item in right.elts:
            item_kind, value, item_key = self.compile(item)
            if item_key is not None or not isinstance(item, ast.Constant | ast.UnaryOp):
                raise self.fail(item, "RULE_TYPE", "a list holds texts or numbers only")
            if item_kind is not kind:
                raise self.fail(
                    item, "RULE_TYPE", f"a {kind.value} cannot be in a list with a {item_kind.value}"
                )
            self._note(key, item)
            values.append(value(_NOBODY))
        found = frozenset(values)
        return lambda facts: (judge(facts) in found) is wanted


def parse_rule(text: str, functions: Mapping[str, tuple[Kind, str]] = FUNCTIONS) -> Rule:
    """A rule from its text; RuleError with the place of the first fault."""
    if len(text) > RULE_CHARACTERS_MAX:
        raise _syntax(RULE_CHARACTERS_MAX, f"a rule has at most {RULE_CHARACTERS_MAX} characters")
    try:
        tree = ast.parse(_line(text), mode="eval")
    except SyntaxError as error:
        # The parser gives no place, or 0, for a text that ends too early; its words are about another
        # language.
        raise _syntax((error.offset or len(text) + 1) - 1, "cannot be read from here on") from None
    except (ValueError, MemoryError, RecursionError):
        raise _syntax(0, "cannot be read from here on") from None
    _check_size(tree)
    compiler = _Compiler(text=_line(text), functions=functions)
    kind, judge, _ = compiler.compile(tree.body)
    if kind is not Kind.TRUTH:
        raise compiler.fail(tree.body, "RULE_TYPE", f"a rule is true or false, this is a {kind.value}")
    constants = {key: tuple(values) for key, values in compiler.constants.items()}
    return Rule(text=text, matches=judge, constants=constants, crossed=compiler.crossed)


def _line(text: str) -> str:
    # Each sign by one: places in the line are places in the text.
    return text.strip().replace("\r", " ").replace("\n", " ")


def _check_writing(line: str) -> None:
    """RuleError where Python reads a sound rule otherwise than whoever wrote it: a comment would take the
    rest of the rule with it, for its lines are one, and two texts without a comma between are one text.
    """
    before = -1
    for token in tokenize.generate_tokens(io.StringIO(line).readline):
        if token.type == tokenize.COMMENT:
            raise _syntax(token.start[1], "a rule holds no comments")
        if token.type == tokenize.STRING and before == tokenize.STRING:
            raise _syntax(token.start[1], "a comma is missing before this text")
        before = token.type


def _syntax(offset: int, message: str) -> RuleError:
    return RuleError(RuleProblem(offset=offset, code="RULE_SYNTAX", message=message))


def _check_size(tree: ast.AST) -> None:
    layer: list[ast.AST] = [tree]
    nodes = depth = 0
    while layer:
        nodes += len(layer)
        depth += 1
        if nodes > 2 * NODES_MAX or depth > DEPTH_MAX:
            raise _syntax(0, f"a rule has at most {NODES_MAX} parts, nested at most {DEPTH_MAX} deep")
        layer = [child for node in layer for child in ast.iter_child_nodes(node)]


@lru_cache(maxsize=COMPILED_MAX)
def compiled(text: str) -> Rule:
    """A rule that was checked when it was stored."""
    return parse_rule(text, PHASE_FUNCTIONS)


# --- rules that never or always match -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Assumed:
    """Facts made up."""

    values: Mapping[Key, Any]

    def value(self, name: str) -> Any:
        return self.values[name, ""]

    def call(self, name: str, argument: str) -> Any:
        return self.values[name, argument]


_NOBODY = _Assumed({})


def rule_problems(
    text: str,
    functions: Mapping[str, tuple[Kind, str]] = FUNCTIONS,
    given: Mapping[Key, Iterable[Any]] | None = None,
    stored: Collection[str] = (),
) -> list[RuleProblem]:
    """What is wrong with a rule; empty for a sound one.

    `given` holds the only values that something can have where the rule is asked, from conditions beside it;
    (name, `ANY`) stands for a function of whatever else. Of rules that are `stored` an earlier release's
    writing stays: it must not keep anybody from changing what is beside them.
    """
    try:
        parse_rule(text, functions)
        # Not where it is read: what an earlier release took goes on as it was.
        if text not in stored:
            _check_writing(_line(text))
    except RuleError as error:
        return [error.problem]
    seen = _outcomes(ast.parse(_line(text), mode="eval").body, functions, given or {})
    if seen == {False}:
        return [RuleProblem(offset=0, code="RULE_NEVER_MATCHES", message="this can never be true")]
    if seen == {True}:
        return [RuleProblem(offset=0, code="RULE_ALWAYS_MATCHES", message="this is always true")]
    return []


def _outcomes(
    node: ast.expr, functions: Mapping[str, tuple[Kind, str]], given: Mapping[Key, Iterable[Any]]
) -> frozenset[bool]:
    """Every outcome that an expression, known to be sound, can have; both where that cannot be found out."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return frozenset(not outcome for outcome in _outcomes(node.operand, functions, given))
    if isinstance(node, ast.BoolOp):
        groups = _entangled(node.values, functions)
        if len(groups) > 1:
            parts = [
                _outcomes(
                    group[0] if len(group) == 1 else ast.BoolOp(op=node.op, values=list(group)),
                    functions,
                    given,
                )
                for group in groups
            ]
            # Parts that look at nothing in common can have any of their outcomes together.
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            found = parts[0]
            for part in parts[1:]:
                found = frozenset(join(one, other) for one in found for other in part)
            return found
    return _tried(node, functions, given)


def _entangled(nodes: Sequence[ast.expr], functions: Mapping[str, tuple[Kind, str]]) -> list[list[ast.expr]]:
    """The nodes in groups that look at nothing in common."""
    groups: list[tuple[set[Key], list[ast.expr]]] = []
    for node in nodes:
        keys, members = set(_compiled(node, functions).constants), [node]
        apart = []
        for group in groups:
            if group[0] & keys:
                keys |= group[0]
                members = [*group[1], *members]
            else:
                apart.append(group)
        groups = [*apart, (keys, members)]
    return [members for _, members in groups]


def _compiled(node: ast.expr, functions: Mapping[str, tuple[Kind, str]]) -> Rule:
    compiler = _Compiler(text="", functions=functions)
    _, judge, _ = compiler.compile(node)
    constants = {key: tuple(values) for key, values in compiler.constants.items()}
    return Rule(text="", matches=judge, constants=constants, crossed=compiler.crossed)


def _tried(
    node: ast.expr, functions: Mapping[str, tuple[Kind, str]], given: Mapping[Key, Iterable[Any]]
) -> frozenset[bool]:
    """The outcomes of all combinations of values."""
    rule, both = _compiled(node, functions), frozenset({False, True})
    if rule.crossed:
        return both
    keys = list(rule.constants)
    domains = [
        list(given.get(key) or given.get((key[0], ANY)) or _domain(key, functions, rule.constants[key]))
        for key in keys
    ]
    if math.prod(map(len, domains)) > COMBINATIONS_MAX:
        return both
    found: set[bool] = set()
    for values in itertools.product(*domains):
        found.add(bool(rule.matches(_Assumed(dict(zip(keys, values, strict=True))))))
        if found == both:
            break
    return frozenset(found)


def _domain(key: Key, functions: Mapping[str, tuple[Kind, str]], constants: tuple[Any, ...]) -> list[Any]:
    """Values of one thing that a rule can tell apart."""
    kind = functions[key[0]][0] if key[1] else NAMES[key[0]][0]
    if kind is Kind.TRUTH:
        return [False, True]
    if kind is Kind.TEXT:
        known = _DOMAINS.get(key[0])
        # A character that no constant has stands for everything else.
        return list(known) if known else sorted({*constants, "", "\0"})
    # None of the numbers is ever negative.
    most = _MOST.get(key[0], math.inf)
    points = sorted({float(value) for value in constants if 0 <= value <= most})
    above = [(points[-1] if points else 0.0) + 1, math.inf]
    if most < math.inf:
        points, above = [*points, most], []
    between = [(low + high) / 2 for low, high in itertools.pairwise(points)]
    return sorted({0.0, *points, *between, *above})


# --- facts --------------------------------------------------------------------------------------------


class CustomerFacts(msgspec.Struct, frozen=True, gc=False):
    """Facts of a customer in a contact."""

    profile: Profile
    contact: Contact
    now: datetime
    #: What the person answered, by phase; for a campaign's phases.
    responses: Mapping[str, str] = msgspec.field(default_factory=dict)

    def value(self, name: str) -> Any:
        """As the port says."""
        if name == "days_since_complaint":
            return self._passed(self.profile.complaint_closed_at, _DAY_SECONDS)
        return _VALUES[name](self.profile, self.contact)

    def call(self, name: str, argument: str) -> Any:
        """As the port says."""
        profile = self.profile
        if name == "owns":
            return argument in profile.products
        if name == "tagged":
            return argument in profile.tags
        if name == "asked":
            return argument in self.contact.products_asked
        if name == "care":
            return argument in profile.care.values()
        if name == "response":
            return self.responses.get(argument, "")
        return self._passed(profile.bought_at.get(argument), _MONTH_SECONDS)

    def _passed(self, at: datetime | None, unit_seconds: float) -> float:
        return math.inf if at is None else max(0.0, (self.now - at).total_seconds() / unit_seconds)


_VALUES: Mapping[str, Callable[[Profile, Contact], Any]] = {
    "tier": lambda profile, contact: profile.tier,
    "value_class": lambda profile, contact: profile.value_class,
    "language": lambda profile, contact: primary_language(contact.language or profile.language),
    "region": lambda profile, contact: contact.region or profile.home_region,
    "channel": lambda profile, contact: contact.channel.value,
    "contact_reason": lambda profile, contact: contact.reason,
    "wants_to_leave": lambda profile, contact: contact.wants_to_leave or profile.wants_to_leave,
    "churn_risk": lambda profile, contact: profile.churn_risk,
    "known": lambda profile, contact: bool(profile.customer),
    "product_count": lambda profile, contact: len(profile.products),
}
