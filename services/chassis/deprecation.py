"""What is marked `deprecated` in the protos still works, and says so: in the trailing metadata of each call
that uses it, and in a metric that tells who would be hit by its removal.

The trailer `callmesh-deprecated` names the method and the request's deprecated fields (those of its first
level), with a space between: "GetThing old_field". It comes with a call that succeeds; an error has its own
trailer. Methods without anything deprecated pay one look at an attribute.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool

from chassis import metrics
from chassis.callcontext import current_identity

#: Name of the trailer.
TRAILER = "callmesh-deprecated"
#: Subjects that the metric tells apart; further ones are counted as "other".
SUBJECTS_MAX = 50

_uses = metrics.counter(
    "callmesh_deprecated_uses_total",
    "Calls that used a deprecated method or field, by who made them.",
    ("service", "element", "subject"),
)
_subjects: set[str] = set()


class Deprecation:
    """What is deprecated about one method."""

    def __init__(self, service: str, method: str, whole: bool, fields: tuple[Any, ...]) -> None:
        self._service = service
        self._method = method
        self._whole = whole
        self._fields = fields

    def warn(self, request: Any, context: Any) -> None:
        """Notes what a call uses; `request` is None for a stream of them."""
        used = [self._method] if self._whole else []
        if request is not None:
            present = {field.name for field, _ in request.ListFields()}
            used += [field.name for field in self._fields if field.name in present]
        if not used:
            return
        context.set_trailing_metadata(((TRAILER, " ".join(used)),))
        subject = _label(current_identity().subject)
        for name in used:
            element = self._method if name == self._method else f"{self._method}.{name}"
            _uses.labels(self._service, element, subject).inc()


def _label(subject: str) -> str:
    if subject not in _subjects:
        if len(_subjects) >= SUBJECTS_MAX:
            return "other"
        _subjects.add(subject)
    return subject


def of(service: str, full_name: str, request: Any) -> Deprecation | None:
    """What is deprecated about a method ("/pkg.Service/Method") with a request of that descriptor; None for
    nothing.
    """
    owner, _, name = full_name.lstrip("/").partition("/")
    try:
        method = descriptor_pool.Default().FindServiceByName(owner).methods_by_name[name]
        whole = bool(method.GetOptions().deprecated)
    except KeyError:
        whole = False
    fields = tuple(f for f in (request.fields if request is not None else ()) if f.GetOptions().deprecated)
    return Deprecation(service, name, whole, fields) if whole or fields else None
