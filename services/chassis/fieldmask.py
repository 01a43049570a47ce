"""Partial updates (AIP-134)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from chassis.errors import InvalidArgument

#: Most paths in one mask.
PATHS_MAX = 100
#: Deepest path, in levels.
DEPTH_MAX = 8

_PATH = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")


def _bad(why: str) -> InvalidArgument:
    return InvalidArgument(field="update_mask", why=why)


def _covered(path: str, names: Collection[str]) -> bool:
    """Whether `path`, or a field that contains it, is in `names`."""
    parts = path.split(".")
    return any(".".join(parts[: depth + 1]) in names for depth in range(len(parts)))


def _is_single_message(field: Any) -> bool:
    return bool(not field.is_repeated and field.type == FieldDescriptor.TYPE_MESSAGE)


def _check_exists(message: Message, path: str) -> None:
    if len(path) > 64 * DEPTH_MAX or not _PATH.fullmatch(path) or path.count(".") >= DEPTH_MAX:
        raise _bad(f"{path[:80]!r} is not a field path")
    descriptor: Any = message.DESCRIPTOR
    parts = path.split(".")
    for depth, part in enumerate(parts):
        field = descriptor.fields_by_name.get(part)
        if field is None:
            raise _bad(f"there is no field {path!r}")
        if depth < len(parts) - 1:
            if not _is_single_message(field):
                raise _bad(f"{path!r} reaches into a field that can only be replaced whole")
            descriptor = field.message_type


def _checked(message: Message, path: str, allowed: Collection[str], immutable: Collection[str]) -> str:
    _check_exists(message, path)
    if _covered(path, immutable):
        raise _bad(f"{path!r} cannot be changed")
    if not _covered(path, allowed):
        raise _bad(f"{path!r} cannot be changed by an update")
    return path


def _copy(target: Message, patch: Message, path: str) -> None:
    """Makes the field at `path` of `target` what it is in `patch`, absent included."""
    *parents, leaf = path.split(".")
    for part in parents:
        if not patch.HasField(part) and not target.HasField(part):
            return
        patch = getattr(patch, part)
        target = getattr(target, part)
    field = target.DESCRIPTOR.fields_by_name[leaf]
    target.ClearField(leaf)
    if field.is_repeated or not field.has_presence:
        filled = type(patch)()
        filled.CopyFrom(patch)
        for other in list(filled.DESCRIPTOR.fields_by_name):
            if other != leaf:
                filled.ClearField(other)
        target.MergeFrom(filled)
    elif patch.HasField(leaf):
        if _is_single_message(field):
            getattr(target, leaf).CopyFrom(getattr(patch, leaf))
        else:
            setattr(target, leaf, getattr(patch, leaf))


def _implied(
    target: Message, patch: Message, allowed: Collection[str], immutable: Collection[str], at: str
) -> list[str]:
    """What a missing mask stands for: every field that the patch fills in and an update may change."""
    paths = []
    for field, value in patch.ListFields():
        if field.name in immutable and value != getattr(target, field.name):
            raise InvalidArgument(field=f"{at}.{field.name}" if at else field.name, why="cannot be changed")
        if field.name in allowed:
            paths.append(field.name)
        else:
            prefix = field.name + "."
            paths += [path for path in sorted(allowed) if path.startswith(prefix)]
    return paths


def apply_mask(
    target_msg: Message,
    patch_msg: Message,
    mask: FieldMask | None,
    *,
    allowed: Collection[str],
    immutable: Collection[str] = frozenset(),
    at: str = "",
) -> list[str]:
    """Copies the fields that `mask` names from `patch_msg` into `target_msg` (same type) and returns their
    paths, sorted.

    `allowed` are the paths an update may change (a message's path allows what is inside), `immutable` those
    that exist but never change, `at` is where the request has the patch. A missing or empty mask stands for
    every allowed field that the patch fills in; "*" for all of `allowed`. A named field that the patch leaves
    out is cleared.

    InvalidArgument(update_mask) for a path that does not exist, is not allowed or immutable; with a missing
    mask InvalidArgument(<field>) for an immutable field with another value. `target_msg` is changed only when
    all is well.
    """
    if type(target_msg) is not type(patch_msg):
        raise TypeError("target and patch must be of one message type")
    named = list(mask.paths) if mask is not None else []
    if len(named) > PATHS_MAX:
        raise _bad(f"holds {len(named)} paths, at most {PATHS_MAX} are allowed")
    if not named:
        paths = _implied(target_msg, patch_msg, allowed, immutable, at)
    elif "*" in named:
        if len(named) > 1:
            raise _bad("'*' must stand alone")
        paths = list(allowed)
    else:
        paths = [_checked(target_msg, path, allowed, immutable) for path in named]
    unique = sorted(set(paths))
    for path in unique:
        _copy(target_msg, patch_msg, path)
    return unique
