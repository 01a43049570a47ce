"""A decision in the forms in which it leaves `Recommend`: the answer in protobuf's encoding, and the event in
protobuf's JSON form. Every recommendation pays for both, so they are put together by hand, and what was the
same for somebody else before is kept as it was written (`Forms`, and the caches here). Tests hold that they
say what protobuf itself would. Loads no grpc.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from callmesh.common.v1 import common_pb2
from callmesh.marketing.v1 import events_pb2, recommendations_pb2, types_pb2
from chassis import telemetry
from chassis.bus.event import Told
from chassis.clock import to_text
from chassis.ids import resource_name
from marketing.convert import (
    EPOCH,
    KEPT_MAX,
    SOURCE,
    enum_number,
    money_to_proto,
    no_offer_number,
    optional_name,
    outcome_to_proto,
    texts_to_proto,
)
from marketing.model import Channel, Contact, Decision, Money, NoOffer, RankedOffer, Text

# --- the answer ---------------------------------------------------------------------------------------


def decision_to_proto(decision: Decision) -> recommendations_pb2.Decision:
    """The whole resource."""
    return recommendations_pb2.Decision.FromString(decision_wire(decision))


def decision_wire(decision: Decision) -> bytes:
    """The whole resource, encoded: its fields in the order of their numbers. Put together here, because each
    field of a message that is set by itself costs as much as many bytes, and what was the same before is kept
    encoded.
    """
    outcome = decision.outcome
    return b"".join(
        (
            _text_wire(b"\x0a", resource_name("decisions", decision.id)),
            _text_wire(b"\x12", optional_name("customers", decision.customer)),
            _text_wire(b"\x1a", decision.number),
            _block_wire(b"\x22", _contact_wire(decision.contact)),
            *[_ranked_wire(entry) for entry in decision.offers],
            _how_wire(
                decision.no_offer,
                decision.policy,
                decision.model,
                decision.holdout,
                decision.propensity,
                outcome is not None,
            ),
            b"" if outcome is None else _block_wire(b"\x62", outcome_to_proto(outcome).SerializeToString()),
            _block_wire(b"\x6a", _time_wire(decision.created_at)),
            _block_wire(b"\x72", _time_wire(decision.expires_at)),
        )
    )


@functools.lru_cache(maxsize=KEPT_MAX)
def _how_wire(
    no_offer: NoOffer | None, policy: str, model: str, holdout: bool, propensity: float, closed: bool
) -> bytes:
    """How it was decided, and whether its outcome is known."""
    return recommendations_pb2.Decision(
        no_offer_reason=no_offer_number(no_offer),
        policy=resource_name("policies", policy),
        model=optional_name("models", model),
        holdout=holdout,
        propensity=propensity,
        state=(
            recommendations_pb2.DECISION_STATE_CLOSED if closed else recommendations_pb2.DECISION_STATE_OPEN
        ),
    ).SerializeToString()


def _contact_wire(contact: Contact) -> bytes:
    return b"".join(
        (
            _text_wire(b"\x0a", contact.call_id),
            _place_wire(contact.channel, contact.queue, contact.region),
            _text_wire(b"\x2a", contact.agent),
            _matter_wire(
                contact.reason,
                contact.language,
                contact.products_asked,
                contact.unresolved,
                contact.wants_to_leave,
            ),
        )
    )


@functools.lru_cache(maxsize=KEPT_MAX)
def _place_wire(channel: Channel, queue: str, region: str) -> bytes:
    number = enum_number(common_pb2.Channel, "CHANNEL", channel)
    return recommendations_pb2.CallContext(channel=number, queue=queue, region=region).SerializeToString()


@functools.lru_cache(maxsize=KEPT_MAX)
def _matter_wire(
    reason: str, language: str, products_asked: tuple[str, ...], unresolved: bool, wants_to_leave: bool
) -> bytes:
    return recommendations_pb2.CallContext(
        contact_reason=reason,
        language=language,
        products_asked=products_asked,
        unresolved=unresolved,
        wants_to_leave=wants_to_leave,
    ).SerializeToString()


#: The changing part of a line as a message (protobuf.dev, "Encoding"): score, acceptance_probability and
#: propensity, each a double behind its field's number and kind.
_changing_wire = struct.Struct("<BdBdBd").pack


def _ranked_wire(entry: RankedOffer) -> bytes:
    """One line of a ranking, as a part of an encoded Decision. Most of it was the same for somebody else
    before, and is kept encoded.
    """
    forms = entry.forms
    if not forms.wire:
        still = _still_proto(entry)
        behind = types_pb2.RankedOffer(reason=still.reason, scripts=still.scripts)
        forms.wire_behind = behind.SerializeToString()
        still.ClearField("reason")
        still.ClearField("scripts")
        forms.wire = still.SerializeToString()
    score, probability, propensity = entry.score, entry.probability, entry.propensity
    if score and probability and propensity:
        changing = _changing_wire(0x39, score, 0x41, probability, 0x49, propensity)
    else:  # what is 0 is left out
        changing = types_pb2.RankedOffer(
            score=score, acceptance_probability=probability, propensity=propensity
        ).SerializeToString()
    return _block_wire(
        b"\x2a", b"".join((forms.wire, b"\x30", _varint(entry.rank), changing, forms.wire_behind))
    )


def _still_proto(entry: RankedOffer) -> types_pb2.RankedOffer:
    reason = entry.reason
    return types_pb2.RankedOffer(
        offer=resource_name("offers", entry.offer),
        offer_revision=entry.revision,
        product=entry.product,
        titles=texts_to_proto(entry.titles),
        price=money_to_proto(entry.price),
        reason=types_pb2.Reason(
            code=enum_number(types_pb2.ReasonCode, "REASON_CODE", reason.code),
            texts=texts_to_proto(reason.texts),
            because_product=reason.because_product,
            share=reason.share,
            customer_count=reason.customer_count,
            lift=reason.lift,
        ),
        scripts=texts_to_proto(entry.scripts),
    )


def _block_wire(tag: bytes, block: bytes) -> bytes:
    """A field that is a text or a message."""
    return b"".join((tag, _varint(len(block)), block))


def _text_wire(tag: bytes, text: str) -> bytes:
    """A field that is a text; nothing for none, as protobuf leaves it out."""
    return _block_wire(tag, text.encode()) if text else b""


@functools.lru_cache(maxsize=KEPT_MAX)
def _varint(number: int) -> bytes:
    """A number that is not negative, in groups of seven bits, the lowest first."""
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _time_wire(moment: datetime) -> bytes:
    """A time's seconds and nanoseconds."""
    past = moment - EPOCH
    seconds, nanos = past.days * 86_400 + past.seconds, past.microseconds * 1_000
    if seconds <= 0:
        return Timestamp(seconds=seconds, nanos=nanos).SerializeToString()
    return _second_wire(seconds) + (b"\x10" + _varint(nanos) if nanos else b"")


@functools.lru_cache(maxsize=KEPT_MAX)
def _second_wire(seconds: int) -> bytes:
    return b"\x08" + _varint(seconds)


# --- the event ----------------------------------------------------------------------------------------


#: Type of the event that every recommendation sends.
_RECOMMENDATION_MADE = events_pb2.RecommendationMade.DESCRIPTOR.full_name
#: The very object that `_Changing` leaves out: of numbers msgspec leaves out no other zero.
_NOTHING = 0.0


class _Figures(msgspec.Struct, rename="camel", omit_defaults=True):
    """What differs between lines that say the same, beside their ranks, in protobuf's JSON form."""

    score: float = _NOTHING
    acceptance_probability: float = _NOTHING
    propensity: float = _NOTHING

    def members(self) -> bytes:
        """Each behind a comma."""
        written = _json_encoder.encode(self)[1:-1]
        return b"," + written if written else b""


class _Made(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True):
    """RecommendationMade in protobuf's JSON form."""

    decision: str
    customer: str = ""
    caller_number: str = ""
    call_id: str = ""
    agent: str = ""
    region: str = ""
    offers: list[msgspec.Raw] = []
    no_offer_reason: str = ""
    create_time: str
    expire_time: str


_json_encoder = msgspec.json.Encoder()


def recommendation_told(decision: Decision) -> Told:
    """What was recommended, as it goes out. It is put together here and not by protobuf's JSON printer, which
    takes as long as all the rest of a recommendation, and what was said of an offer in the same words before
    is not written again; a test holds that both say the same.
    """
    contact = decision.contact
    data = _Made(
        decision=resource_name("decisions", decision.id),
        customer=optional_name("customers", decision.customer),
        caller_number=decision.number,
        call_id=contact.call_id,
        agent=contact.agent,
        region=contact.region,
        offers=[_ranked_json(entry) for entry in decision.offers],
        no_offer_reason=f"NO_OFFER_REASON_{decision.no_offer.value}" if decision.no_offer else "",
        create_time=_time_json(decision.created_at),
        expire_time=_time_json(decision.expires_at),
    )
    return Told.written(
        data,
        # Each decision is told of once, under an id that follows from its own.
        id=f"recommendation:{decision.id}",
        source=SOURCE,
        type=_RECOMMENDATION_MADE,
        subject=data.customer or data.decision,
        time=decision.created_at,
        traceparent=telemetry.current_traceparent(),
    )


def _filled(data: dict[str, Any]) -> dict[str, Any]:
    """Without what has its default, as protobuf's JSON form leaves it out."""
    return {key: value for key, value in data.items() if value}


def _time_json(moment: datetime) -> str:
    text = to_text(moment)
    return f"{text[:-5]}Z" if text.endswith(".000Z") else text


def _money_json(money: Money) -> dict[str, str]:
    return {"currencyCode": money.currency, "amount": money.text()}


def _texts_json(texts: Iterable[Text]) -> list[dict[str, str]]:
    return [_filled({"language": text.language, "text": text.text}) for text in texts]


def _ranked_json(entry: RankedOffer) -> msgspec.Raw:
    """One line of a ranking."""
    forms = entry.forms
    if not forms.text:
        # Neither is ever empty: every offer has an id, and every line a rank.
        forms.text = _json_encoder.encode(_still_json(entry))[:-1] + b',"rank":'
    if forms.score != entry.score or forms.probability != entry.probability:
        # Without a propensity model they are the same whenever the line is.
        forms.figures = _Figures(entry.score or _NOTHING, entry.probability or _NOTHING).members()
        forms.score, forms.probability = entry.score, entry.probability
    propensity = _propensity_json(entry.propensity)
    return msgspec.Raw(b"%b%d%b%b}" % (forms.text, entry.rank, forms.figures, propensity))


@functools.lru_cache(maxsize=KEPT_MAX)
def _propensity_json(propensity: float) -> bytes:
    return _Figures(propensity=propensity or _NOTHING).members()


def _still_json(entry: RankedOffer) -> dict[str, Any]:
    reason = entry.reason
    told = {
        "code": f"REASON_CODE_{reason.code.value}",
        "texts": _texts_json(reason.texts),
        "becauseProduct": reason.because_product,
        "share": reason.share,
        "customerCount": str(reason.customer_count) if reason.customer_count else "",
        "lift": reason.lift,
    }
    return _filled(
        {
            "offer": resource_name("offers", entry.offer),
            "offerRevision": str(entry.revision),
            "product": entry.product,
            "titles": _texts_json(entry.titles),
            "price": _money_json(entry.price),
            "reason": _filled(told),
            "scripts": _texts_json(entry.scripts),
        }
    )
