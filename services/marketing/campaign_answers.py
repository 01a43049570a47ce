"""What campaigns hear of people elsewhere: of the calls that they caused, and of the surveys of their phases.
Loads no grpc.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from callmesh.marketing.v1 import campaigns_pb2
from chassis.errors import NotFound
from chassis.ids import parse_names
from chassis.logs import get_logger
from marketing import convert
from marketing.campaign_store import Answers
from marketing.campaigns import Campaigns
from marketing.engine import OfferSoldOut
from marketing.kinds import CAMPAIGNS, CONTACT_LISTS

_log = get_logger(__name__)

#: What a call's result says to its campaign; a success is BOUGHT where the list promotes an offer.
RESPONSES: Mapping[str, str] = {
    "SUCCESS": "INTERESTED",
    "DECLINED": "DECLINED",
    "OPTED_OUT": "OPTED_OUT",
}
#: Satisfaction below which a completed survey is no sign of interest.
SATISFACTION_MIN = 0.5
#: Campaigns that a survey may belong to.
CAMPAIGNS_MAX = 1_000
_OPEN = [campaigns_pb2.CAMPAIGN_STATE_RUNNING, campaigns_pb2.CAMPAIGN_STATE_PAUSED]


def take_result(campaigns: Campaigns, answers: Answers, message: Any) -> bool:
    """Tells a campaign what came of its call (`OutboundResultRecorded`); whether there was something to tell.
    Who does not want to be called again is not addressed otherwise either. Repeatable.
    """
    response = RESPONSES.get(message.result)
    list_name, _ = parse_names("contact", ("contactLists", "contacts"), message.contact)
    if response is None or not message.customer:
        return False
    customer = message.customer.removeprefix("customers/")
    if response == "OPTED_OUT":
        answers.opt_out(customer, convert.moment(message.record_time))
    try:
        row = campaigns.shelves.get(CONTACT_LISTS, list_name)
    except NotFound:
        return False
    origin = row.content.get("origin")
    if not origin:
        return False
    if response == "INTERESTED" and row.content["resource"].get("offer"):
        response = "BOUGHT"
    if response == "BOUGHT":
        try:
            campaigns.sold(answers, origin["campaign"], customer, message.agent)
        except OfferSoldOut:
            # The call is over and its result stands: somebody wants what there is none left of.
            _log.warning("campaign.sold_out", campaign=origin["campaign"], contact=message.contact)
            response = "REGISTERED"
    if answers.answer(origin["campaign"], customer, origin["phase"], response) is None:
        return False
    answers.mark_answered(origin["campaign"], origin["phase"], customer, response)
    return True


def take_survey(campaigns: Campaigns, answers: Answers, message: Any) -> int:
    """Tells campaigns that somebody completed the survey of one of their phases (`SurveyCompleted`); how many
    heard of it. Who did is interested, unless the scored questions say the contrary; an answer that is there
    already stays. Repeatable.
    """
    if not message.customer:
        return 0
    customer = message.customer.removeprefix("customers/")
    unhappy = message.HasField("satisfaction") and message.satisfaction < SATISFACTION_MIN
    response = "DECLINED" if unhappy else "INTERESTED"
    told = 0
    for row in campaigns.shelves.find(CAMPAIGNS, {"state": {"$in": _OPEN}}, CAMPAIGNS_MAX):
        for phase in row.content["resource"].get("phases", ()):
            place = phase["phase_id"]
            if phase.get("survey") != message.survey or place in answers.answers(row.id, customer):
                continue
            if answers.answer(row.id, customer, place, response) is not None:
                answers.mark_answered(row.id, place, customer, response)
                told += 1
    return told
