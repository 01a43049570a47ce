"""How imports lie in MongoDB."""

from __future__ import annotations

from typing import Any, ClassVar

from mongoengine import BooleanField, DictField, Document, IntField, ListField, StringField

from chassis.mongo import Aggregate


class ImportDocument(Aggregate):
    """An import: what it is, and how far it is."""

    resource_collection: ClassVar[str] = "imports"
    meta: ClassVar[dict[str, Any]] = {"collection": "imports", "indexes": []}

    format = StringField(required=True)
    row_kind = StringField(required=True)
    mappings = ListField(DictField())
    dry_run = BooleanField()
    update_existing = BooleanField()
    default_country = StringField()
    error_count_max = IntField()
    state = StringField(required=True)
    #: Everything before this byte is done with.
    received_bytes = IntField()
    #: Lines before that byte.
    lines = IntField()
    good_rows = IntField()
    bad_rows = IntField()
    #: Headings of a CSV file, once read.
    columns = ListField(StringField())
    creator = StringField()


class ImportErrorDocument(Document):
    """A refused row. `_id` is "import:line", the line with leading zeros, so that noting it twice is
    harmless.
    """

    meta: ClassVar[dict[str, Any]] = {
        "collection": "import_errors",
        "auto_create_index": False,
        "index_cls": False,
        "strict": False,
        "indexes": [{"fields": ["import_id", "line"], "name": "import_line"}],
    }

    id = StringField(primary_key=True)
    import_id = StringField()
    line = IntField()
    field = StringField()
    reason = StringField()
    #: In English.
    message = StringField()
    #: What its texts in other languages are found by, and filled with.
    text = StringField()
    values = DictField()


TRANSFER_DOCUMENTS: tuple[type[Document], ...] = (ImportDocument, ImportErrorDocument)
