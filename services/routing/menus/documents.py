"""Menus' documents. Versions never change; what is in service is one small document a menu."""

from __future__ import annotations

from typing import ClassVar

from mongoengine import (
    BinaryField,
    BooleanField,
    DateTimeField,
    Document,
    FloatField,
    IntField,
    ListField,
    StringField,
)

from chassis.mongo import Aggregate

#: What one number does in a menu is kept so long after it was last there, seconds: longer than a year, so
#: that who calls once a year is known again.
CALLER_SECONDS = 400 * 86_400
_PLAIN = {"auto_create_index": False, "index_cls": False, "strict": False}


class MenuDocument(Aggregate):
    """Which version of a menu is in service."""

    meta: ClassVar = {"collection": "menus"}
    resource_collection = "menus"
    published = IntField(default=0)
    trial = IntField(default=0)
    share = FloatField(default=0.0)


class MenuVersionDocument(Aggregate):
    """One version of a menu; its id is "menu@number"."""

    meta: ClassVar = {
        "collection": "menu_versions",
        "indexes": [{"fields": ["menu", "-number"], "unique": True}],
    }
    resource_collection = "menus"
    menu = StringField(required=True)
    number = IntField(required=True, min_value=1)
    #: The menu as a protobuf message: what the API can say can be stored.
    content = BinaryField(required=True)


class SurveyDocument(Aggregate):
    """One survey's answers, told as SurveyAnswered; its id is the session's."""

    meta: ClassVar = {"collection": "menu_surveys", "indexes": [("menu", "-created_at")]}
    menu = StringField()
    call_id = StringField()
    satisfaction = FloatField()
    completed = BooleanField(default=False)


class MenuSessionDocument(Document):
    """One session as its newest step left it."""

    meta: ClassVar = {
        **_PLAIN,
        "collection": "menu_sessions",
        "indexes": [
            ("menu", "began"),
            ("number", "menu", "began"),
            ("customer", "menu", "began"),
            {"fields": ["expires"], "expireAfterSeconds": 0},
        ],
    }
    id = StringField(primary_key=True)
    menu = StringField()
    version = IntField()
    number = StringField()
    customer = StringField()
    #: Business time of the beginning and of the newest step, ms since 1970.
    began = IntField()
    last = IntField()
    step = IntField()
    outcome = StringField()
    #: Ids of the nodes on the way, and the leaf reached; "" for none.
    way = ListField(StringField())
    leaf = StringField()
    presses = IntField()
    listened = IntField()
    #: Rows of node, key, ms listened, notice.
    visits = ListField(ListField())
    #: The session itself, as tokens.py makes it.
    body = BinaryField()
    #: Real time at which it is forgotten.
    expires = DateTimeField()


class MenuCallerDocument(Document):
    """What one number does in one menu; its id is "menu|number"."""

    meta: ClassVar = {
        **_PLAIN,
        "collection": "menu_callers",
        "indexes": ["number", {"fields": ["used"], "expireAfterSeconds": CALLER_SECONDS}],
    }
    id = StringField(primary_key=True)
    menu = StringField()
    number = StringField()
    #: Own short cuts: key, node, source, at.
    own = ListField()
    #: Leaves reached lately: session, leaf, at.
    uses = ListField()
    #: Real time of the newest use or short cut.
    used = DateTimeField()


class OpenTicketDocument(Document):
    """A ticket of a number, fed by tickets' events."""

    meta: ClassVar = {
        **_PLAIN,
        "collection": "menu_tickets",
        "indexes": [("number", "open"), {"fields": ["expires"], "expireAfterSeconds": 0}],
    }
    #: Ticket id.
    id = StringField(primary_key=True)
    number = StringField()
    open = BooleanField()
    #: Version of the ticket that said so.
    version = IntField()
    #: Real time; a closed ticket is forgotten then.
    expires = DateTimeField()


#: Those whose events the worker's relay publishes.
TELLING = (MenuDocument, SurveyDocument)
DOCUMENTS = (
    MenuDocument,
    MenuVersionDocument,
    SurveyDocument,
    MenuSessionDocument,
    MenuCallerDocument,
    OpenTicketDocument,
)
