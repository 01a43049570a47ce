"""Field masks change what they name and nothing else."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FieldOptions
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from chassis.fieldmask import PATHS_MAX, apply_mask

# FieldDescriptorProto stands for a resource: scalars with presence, an enum, a nested message.
ALLOWED = {"json_name", "number", "type", "options"}
IMMUTABLE = {"name"}

TEXTS = st.text(max_size=5)
RESOURCES = st.builds(
    FieldDescriptorProto,
    name=st.just("same"),
    json_name=st.none() | TEXTS,
    number=st.none() | st.integers(0, 9),
    type=st.none() | st.integers(1, 18),
    default_value=st.none() | TEXTS,
    options=st.none()
    | st.builds(FieldOptions, packed=st.none() | st.booleans(), lazy=st.none() | st.booleans()),
)
PATHS = st.sets(st.sampled_from([*sorted(ALLOWED), "options.packed", "options.lazy"]), min_size=1)


def value(message, path):
    for part in path.split("."):
        if not message.HasField(part):
            return None
        message = getattr(message, part)
    return message


@given(RESOURCES, RESOURCES, PATHS)
def test_named_fields_become_the_patchs_and_the_others_stay(target, patch, paths):
    before = FieldDescriptorProto()
    before.CopyFrom(target)
    applied = apply_mask(target, patch, FieldMask(paths=paths), allowed=ALLOWED, immutable=IMMUTABLE)
    assert applied == sorted(paths)
    for path in ("name", "json_name", "number", "type", "default_value", "options.packed", "options.lazy"):
        named = path in paths or path.split(".")[0] in paths
        assert value(target, path) == value(patch if named else before, path), path


@given(RESOURCES, RESOURCES, PATHS)
def test_applying_twice_is_applying_once(target, patch, paths):
    mask = FieldMask(paths=paths)
    apply_mask(target, patch, mask, allowed=ALLOWED)
    once = target.SerializeToString(deterministic=True)
    apply_mask(target, patch, mask, allowed=ALLOWED)
    assert target.SerializeToString(deterministic=True) == once


@given(RESOURCES, RESOURCES)
def test_without_a_mask_what_the_patch_fills_in_is_taken(target, patch):
    patch.ClearField("default_value")
    before = FieldDescriptorProto()
    before.CopyFrom(target)
    applied = apply_mask(target, patch, None, allowed=ALLOWED, immutable=IMMUTABLE)
    assert set(applied) <= ALLOWED
    for path in ALLOWED:
        assert value(target, path) == value(patch if patch.HasField(path) else before, path)


@given(RESOURCES, st.text(max_size=30))
def test_any_path_is_applied_or_refused_and_a_refusal_changes_nothing(target, path):
    before = target.SerializeToString(deterministic=True)
    try:
        apply_mask(
            target,
            FieldDescriptorProto(),
            FieldMask(paths=["number", path]),
            allowed=ALLOWED,
            immutable=IMMUTABLE,
        )
    except InvalidArgument as error:
        assert error.details.field_violations[0].field == "update_mask"
        assert target.SerializeToString(deterministic=True) == before
    else:
        assert path.split(".")[0] in ALLOWED


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("nope", "no field"),
        ("jsonName", "not a field path"),
        ("", "not a field path"),
        ("options.nope", "no field"),
        ("options.uninterpreted_option.name", "replaced whole"),
        ("number.x", "replaced whole"),
        ("name", "cannot be changed"),
        ("default_value", "cannot be changed"),
        ("a." * 100 + "a", "not a field path"),
    ],
)
def test_bad_paths(path, why):
    with pytest.raises(InvalidArgument, match=why):
        apply_mask(
            FieldDescriptorProto(),
            FieldDescriptorProto(),
            FieldMask(paths=[path]),
            allowed=ALLOWED,
            immutable=IMMUTABLE,
        )


def test_the_star_stands_for_everything_that_may_change():
    target = FieldDescriptorProto(name="n", json_name="j", default_value="d")
    apply_mask(target, FieldDescriptorProto(name="other", number=3), FieldMask(paths=["*"]), allowed=ALLOWED)
    assert target == FieldDescriptorProto(name="n", number=3, default_value="d")
    with pytest.raises(InvalidArgument, match="alone"):
        apply_mask(target, target, FieldMask(paths=["*", "number"]), allowed=ALLOWED)


def test_an_immutable_field_may_be_repeated_but_not_changed():
    target = FieldDescriptorProto(name="n")
    apply_mask(target, FieldDescriptorProto(name="n", number=1), None, allowed=ALLOWED, immutable=IMMUTABLE)
    assert target.number == 1
    with pytest.raises(InvalidArgument) as caught:
        apply_mask(
            target, FieldDescriptorProto(name="m", number=2), None, allowed=ALLOWED, immutable=IMMUTABLE
        )
    assert caught.value.details.field_violations[0].field == "name"
    assert target.number == 1
    with pytest.raises(InvalidArgument) as caught:
        apply_mask(
            target, FieldDescriptorProto(name="m"), None, allowed=ALLOWED, immutable=IMMUTABLE, at="field"
        )
    assert caught.value.details.field_violations[0].field == "field.name"


def test_repeated_fields_are_replaced_whole_and_nested_permission_is_enough():
    target = DescriptorProto(reserved_name=["a", "b"])
    apply_mask(
        target,
        DescriptorProto(reserved_name=["c"]),
        FieldMask(paths=["reserved_name"]),
        allowed={"reserved_name"},
    )
    assert list(target.reserved_name) == ["c"]
    apply_mask(target, DescriptorProto(), FieldMask(paths=["reserved_name"]), allowed={"reserved_name"})
    assert list(target.reserved_name) == []
    resource = FieldDescriptorProto()
    patch = FieldDescriptorProto(options=FieldOptions(packed=True, lazy=True))
    assert apply_mask(resource, patch, None, allowed={"options.packed"}) == ["options.packed"]
    assert resource.options == FieldOptions(packed=True)


def test_too_many_paths_and_two_types():
    with pytest.raises(InvalidArgument, match="at most"):
        apply_mask(
            FieldDescriptorProto(),
            FieldDescriptorProto(),
            FieldMask(paths=["number"] * (PATHS_MAX + 1)),
            allowed=ALLOWED,
        )
    with pytest.raises(TypeError):
        apply_mask(FieldDescriptorProto(), DescriptorProto(), None, allowed=ALLOWED)
