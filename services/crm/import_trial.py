"""What the rows of a dry run would have taken, so that those behind them meet it; see `crm.imports`. Blocks.

Rows of one file clash with each other as they do with what is stored, however far apart they are, also where
the file comes in several streams. So what a row would take is noted, by digests, in a collection beside the
import, which forgets it at the import's end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar

from mongoengine import DateTimeField, Document, IntField, StringField
from pymongo import UpdateOne
from pymongo.write_concern import WriteConcern

from chassis.errors import AlreadyExists, CallmeshError
from chassis.ids import stable_id
from crm import engine
from crm.model import Customer

#: How long what a dry run noted is kept, seconds, where it never comes to its end.
TRIAL_KEPT_SECONDS = 7 * 24 * 3600


class ImportTrialDocument(Document):
    """What a row of a dry run would take; `_id` is "import:digest"."""

    meta: ClassVar[dict[str, Any]] = {
        "collection": "import_trials",
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
        "indexes": [{"fields": ["created_at"], "name": "kept", "expireAfterSeconds": TRIAL_KEPT_SECONDS}],
    }

    id = StringField(primary_key=True)
    #: Where the row begins.
    line = IntField()
    #: Whose it would be.
    owner = StringField()
    created_at = DateTimeField()


def forget(import_id: str) -> None:
    """Removes what a dry run noted. Idempotent."""
    # An import's id holds no ":", and ";" follows it.
    _collection().delete_many({"_id": {"$gte": f"{import_id}:", "$lt": f"{import_id};"}})


def _collection() -> Any:
    return ImportTrialDocument._get_collection().with_options(write_concern=WriteConcern(w="majority"))


def name_key(name: str) -> str:
    """What a resource's name is noted as."""
    return f"name:{name}"


def keys_of(customer: Customer) -> list[str]:
    """What a customer takes: its name, and what it owns."""
    return [name_key(customer.name), *engine.claims(customer)]


class Trial:
    """What is taken when the rows of one batch come, and by each of them."""

    def __init__(self, import_id: str, first_line: int, keys: Iterable[str]) -> None:
        """`keys`: all that the batch's rows may take."""
        self._import = import_id
        wanted = {self._id(key): key for key in keys}
        found = _collection().find({"_id": {"$in": list(wanted)}}) if wanted else ()
        # A batch may be looked at again after a crash: what it noted then is not ahead of it.
        self._owners = {wanted[raw["_id"]]: raw["owner"] for raw in found if raw["line"] < first_line}
        #: Key -> line.
        self._noted: dict[str, int] = {}

    def _id(self, key: str) -> str:
        return f"{self._import}:{stable_id('import-trial', self._import, key)}"

    def has(self, name: str) -> bool:
        """Whether a row made the resource of that name."""
        return name_key(name) in self._owners

    def clash(self, customer: Customer) -> CallmeshError | None:
        """The error when a row took the customer's id or a claim of its."""
        return AlreadyExists(resource=customer.name) if self.has(customer.name) else self.taken(customer)

    def taken(self, customer: Customer) -> CallmeshError | None:
        """The error when a row of somebody else took a claim of the customer's."""
        return engine.claim_taken(customer, self._owners)

    def take(self, keys: Iterable[str], line: int, owner: str) -> None:
        """Notes what a good row takes."""
        for key in keys:
            if key not in self._owners:
                self._owners[key], self._noted[key] = owner, line

    def save(self) -> None:
        """Keeps what was noted for the batches behind. May be repeated."""
        now = datetime.now(UTC)
        writes = [
            UpdateOne(
                {"_id": self._id(key)},
                {"$set": {"line": line, "owner": self._owners[key], "created_at": now}},
                upsert=True,
            )
            for key, line in self._noted.items()
        ]
        if writes:
            _collection().bulk_write(writes, ordered=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A row that a dry run decided."""

    line: int
    #: Whom it would make.
    customer: Customer
    #: What is stored against that; None for nothing.
    stored: CallmeshError | None


#: Tries to change the customer of an error by the row of a place; why that is refused, None when it is not.
Change = Callable[[int, AlreadyExists], CallmeshError | None]


def faults_of(
    import_id: str, rows: Sequence[Tried], change: Change | None, owned: Change
) -> list[CallmeshError | None]:
    """What a run of these rows would refuse. `change` where rows may change whom they meet; `owned` tells
    what is stored against a row's claims being those of whom it meets, who is not stored.
    """
    if not rows:
        return []
    trial = Trial(import_id, rows[0].line, (key for row in rows for key in keys_of(row.customer)))
    faults: list[CallmeshError | None] = []
    for row in rows:
        fault = row.stored or trial.clash(row.customer)
        if fault is None:
            trial.take(keys_of(row.customer), row.line, row.customer.id)
        faults.append(fault)
    # As in a run, rows that change somebody come behind those of their batch that make somebody.
    for place, (row, fault) in enumerate(zip(rows, faults, strict=True)):
        if change is None or not isinstance(fault, AlreadyExists):
            continue
        name = str(fault.values.get("resource") or "")
        whole = replace(row.customer, id=name.removeprefix("customers/"))
        why = trial.taken(whole) or (owned if trial.has(name) else change)(place, fault)
        faults[place] = why
        if why is None:
            trial.take(engine.claims(whole), row.line, whole.id)
    trial.save()
    return faults


def clash_of_name(import_id: str, name: str, line: int) -> CallmeshError | None:
    """The error when a row ahead made the resource of that name; else a row makes it now."""
    trial = Trial(import_id, line, [name_key(name)])
    if trial.has(name):
        return AlreadyExists(resource=name)
    trial.take([name_key(name)], line, name)
    trial.save()
    return None
