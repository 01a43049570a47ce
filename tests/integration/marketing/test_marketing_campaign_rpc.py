"""Campaigns as a partner runs them: over gRPC on real MongoDB, with the worker's own loops."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar
from unittest.mock import ANY

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from callmesh.crm.v1 import events_pb2 as crm
from callmesh.marketing.v1 import (
    campaigns_pb2,
    campaigns_pb2_grpc,
    outbound_pb2,
    outbound_pb2_grpc,
    types_pb2,
)
from chassis import mongo
from chassis.bus import Event
from cli.outbound import outbound
from marketing import campaign_servicer, worker
from marketing.campaign_engine import StepChannel
from marketing.campaign_store import CampaignStore
from marketing.campaigns import Campaigns
from marketing.config import MarketingSettings
from marketing.documents import DecisionDocument, ModelDocument, ProfileDocument
from marketing.handlers import Facts
from marketing.inbound import learn
from marketing.kinds import ALL_DOCUMENTS, CAMPAIGNS
from marketing.learned import Propensities
from marketing.lifecycle import _mark_strangers
from marketing.model import Channel, Complaint, Profile, Purchase
from marketing.reader import MongoReader
from marketing.scopes import SCOPES
from marketing.segments import Segments
from marketing.server import bindings
from marketing.shelf import MongoShelves
from marketing.store import MongoStore

pytestmark = pytest.mark.integration

C = campaigns_pb2
PEOPLE = 12


class Gateway(BaseHTTPRequestHandler):
    """Takes messages."""

    taken: ClassVar[list[dict[str, Any]]] = []
    #: What happens while a message is taken.
    meanwhile: ClassVar[Callable[[], Any]] = lambda: None

    def do_POST(self) -> None:
        Gateway.taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        Gateway.meanwhile()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class World:
    """A server, its stores, and the worker's loops."""

    def __init__(self, channel: grpc.aio.Channel, settings: MarketingSettings, address: str) -> None:
        self.settings, self.address = settings, address
        self.store = MongoStore()
        self.stub = campaigns_pb2_grpc.CampaignServiceStub(channel)
        self.outbound = outbound_pb2_grpc.OutboundServiceStub(channel)

    def run(self, loop: Callable[[MarketingSettings], Any], rounds: int = 2) -> None:
        """So many rounds of one of the worker's loops."""
        left = iter([False] * rounds)
        loop(self.settings).run(lambda _: next(left, True))


@pytest_asyncio.fixture
async def world(mongo_uri: str, mongo_database: str, grpc_server: Any) -> AsyncIterator[World]:
    Gateway.taken.clear()
    Gateway.meanwhile = lambda: None
    server = HTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sender = {"id": "gateway", "channel": "SMS", "adapter": "webhook"}
    sender["target"] = f"http://127.0.0.1:{server.server_port}/"
    settings = MarketingSettings(
        mongo_uri=mongo_uri, mongo_database=mongo_database, senders=json.dumps([sender])
    )
    mongo.connect(settings)
    mongo.ensure_indexes(ALL_DOCUMENTS)
    database = mongo.async_database(settings)
    services = bindings(settings, MongoStore(), MongoReader(database), settings.clock())
    running = await grpc_server(services, scopes=SCOPES)
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield World(channel, settings, running.address)
    await database.client.close()
    mongo.disconnect()
    server.shutdown()
    server.server_close()


async def refused(call: Any) -> tuple[str, list[str]]:
    """(reason, bad fields) of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in rpc_status.from_call(caught.value).details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return info.reason, [violation.field for violation in bad.field_violations]


def furnish(store: MongoStore) -> None:
    """Twelve customers: one refuses messages, one complains."""
    for number in range(PEOPLE):
        store.save_profile(
            Profile(
                customer=f"c{number:02}",
                numbers=(f"+86138000000{number:02}",),
                display_name=f"Person {number}",
                language="en",
                tier="gold" if number < 6 else "standard",
                value_class="AB"[number % 2],
                home_region="regions/beijing",
                refused_channels=frozenset({Channel.SMS}) if number == 1 else frozenset(),
                consents=dict.fromkeys((Channel.SMS, Channel.EMAIL, Channel.VOICE)),
                crm_version=1,
            )
        )
    store.save_complaint(Complaint(ticket="t1", customer="c02", number="", open=True, version=1))


def step(id: str, channel: int, wait_days: int = 1) -> C.Step:
    variants = [
        C.Variant(variant_id=one, bodies=[types_pb2.Script(language="en", text="Hello {{display_name}}")])
        for one in ("a", "b")
    ]
    return C.Step(step_id=id, channel=channel, wait=Duration(seconds=wait_days * 86_400), variants=variants)


def campaign(segment: str, *steps: C.Step) -> C.Campaign:
    now = datetime.now(UTC)
    phase = C.Phase(phase_id="invite", kind=C.PHASE_KIND_INVITE, steps=steps)
    phase.period.start_time.FromDatetime(now - timedelta(days=1))
    phase.period.end_time.FromDatetime(now + timedelta(days=9))
    goal = C.Goal(phase_id="invite", metric=C.GOAL_METRIC_BOUGHT, target=1_000)
    return C.Campaign(display_name="Spring", segment=segment, phases=[phase], goals=[goal])


async def start(world: World, id: str, made: C.Campaign) -> C.Campaign:
    created = await world.stub.CreateCampaign(C.CreateCampaignRequest(campaign=made, campaign_id=id))
    return await world.stub.StartCampaign(C.StartCampaignRequest(name=created.name, etag=created.etag))


async def never_quiet(world: World) -> None:
    """The test may run at any hour."""
    policy = C.ContactPolicy(name="contactPolicy")
    mask = FieldMask(paths=["quiet_hours"])
    await world.stub.UpdateContactPolicy(
        C.UpdateContactPolicyRequest(contact_policy=policy, update_mask=mask)
    )


async def switched(world: World, *words: str) -> str:
    """The kill switch, as an operator throws it."""
    done = await asyncio.to_thread(CliRunner().invoke, outbound, [*words, "--address", world.address])
    assert done.exit_code == 0, done.output
    status = await asyncio.to_thread(CliRunner().invoke, outbound, ["status", "--address", world.address])
    assert status.exit_code == (1 if words[0] == "stop" else 0)
    return str(status.output)


def gauge() -> float | None:
    return REGISTRY.get_sample_value("callmesh_outbound_halted", {"service": "marketing"})


async def test_a_campaign_from_draft_to_its_end(world: World) -> None:
    furnish(world.store)
    await never_quiet(world)
    segment = C.Segment(display_name="Gold", rule='tier == "gold"')
    await world.stub.CreateSegment(C.CreateSegmentRequest(segment=segment, segment_id="gold"))
    sms, desk = step("sms", C.STEP_CHANNEL_SMS), step("desk", C.STEP_CHANNEL_TOUCH_POINT)
    sms.stopping_rule.metric = C.GOAL_METRIC_INTERESTED
    running = await start(world, "spring", campaign("segments/gold", sms, desk))
    assert running.state == C.CAMPAIGN_STATE_RUNNING and running.HasField("start_time")
    preview = await world.stub.PreviewCampaign(C.PreviewCampaignRequest(name=running.name, sample_size=1))
    (phase,) = preview.phases
    assert (phase.segment_count, phase.reachable_count) == (6, 4)
    assert dict(phase.held_back) == {"NO_CONSENT": 1, "OPEN_COMPLAINT": 1}
    assert phase.samples[0].body.startswith("Hello Person ")

    await switched(world, "stop", "--reason", "a wrong price")
    world.run(worker._campaigns, rounds=3)
    assert Gateway.taken == [] and gauge() == 1
    await switched(world, "resume")
    world.run(worker._campaigns, rounds=3)
    assert sorted(one["customer"] for one in Gateway.taken) == [f"customers/c{n:02}" for n in (0, 3, 4, 5)]
    assert gauge() == 0
    assert not (await world.stub.ListSenders(C.ListSendersRequest())).senders[0].backlog_count
    answer = C.RecordCampaignResponseRequest(
        campaign=running.name, customer="customers/c03", response=C.CONTACT_RESPONSE_BOUGHT
    )
    assert (await world.stub.RecordCampaignResponse(answer)).response == C.CONTACT_RESPONSE_BOUGHT
    ask = C.ListTouchPointsRequest(customer="customers/c03", page_size=-1)
    assert (await refused(world.stub.ListTouchPoints(ask)))[1] == ["page_size"]
    answer.customer = "customers/c09"
    assert (await refused(world.stub.RecordCampaignResponse(answer)))[0] == "CONTACT_NOT_FOUND"
    funnel = await world.stub.GetCampaignFunnel(C.GetCampaignFunnelRequest(name=running.name))
    assert sum(row.reached_count for row in funnel.rows) == 4
    assert [(row.value_class, row.bought_count) for row in funnel.rows] == [("A", 0), ("B", 1)]
    assert funnel.goals[0].endangered
    asked = C.GetExperimentRequest(campaign=running.name, phase_id="invite", step_id="sms")
    found = await world.stub.GetExperiment(asked)
    assert sum(one.contact_count for one in found.variants) == 4 and not found.winner_variant_id
    assert (await refused(world.stub.GetExperiment(C.GetExperimentRequest(campaign=running.name))))[1] == [
        "step_id"
    ]
    listed = C.ListCampaignContactsRequest(parent=running.name, page_size=4)
    page = await world.stub.ListCampaignContacts(listed)
    listed.page_token = page.next_page_token
    rest = await world.stub.ListCampaignContacts(listed)
    assert [one.customer[-2:] for one in (*page.contacts, *rest.contacts)] == [f"0{n}" for n in range(6)]
    await check_ends(world, running)


async def check_ends(world: World, running: C.Campaign) -> None:
    """What a running campaign refuses, and the way to its end."""
    used = world.stub.DeleteSegment(C.DeleteSegmentRequest(name="segments/gold"))
    assert (await refused(used))[0] == "SEGMENT_USED"
    change = C.UpdateCampaignRequest(
        campaign=C.Campaign(name=running.name, segment="segments/other"),
        update_mask=FieldMask(paths=["segment"]),
    )
    assert (await refused(world.stub.UpdateCampaign(change)))[0] == "CAMPAIGN_STATE"
    deletion = world.stub.DeleteCampaign(C.DeleteCampaignRequest(name=running.name))
    assert (await refused(deletion))[0] == "CAMPAIGN_STATE"
    later = C.Campaign(name=running.name)
    later.phases.extend(running.phases)
    later.phases[0].period.end_time.FromSeconds(running.phases[0].period.end_time.seconds + 86_400)
    later.phases[0].steps[0].variants[0].weight = 9
    longer = C.UpdateCampaignRequest(campaign=later, update_mask=FieldMask(paths=["phases"]))
    assert (await world.stub.UpdateCampaign(longer)).phases[0].steps[0].variants[0].weight == 9
    longer.campaign.phases[0].steps[0].wait.seconds = 1
    assert (await refused(world.stub.UpdateCampaign(longer)))[0] == "CAMPAIGN_STATE"
    counted = await world.stub.GetSegment(C.GetSegmentRequest(name="segments/gold"))
    assert counted.member_count == 6 and counted.HasField("count_time")
    paused = await world.stub.PauseCampaign(C.PauseCampaignRequest(name=running.name))
    assert paused.state == C.CAMPAIGN_STATE_PAUSED
    assert (await refused(world.stub.PauseCampaign(C.PauseCampaignRequest(name=running.name))))[
        0
    ] == "CAMPAIGN_STATE"
    await world.stub.ResumeCampaign(C.ResumeCampaignRequest(name=running.name))
    stopped = await world.stub.StopCampaign(C.StopCampaignRequest(name=running.name))
    assert stopped.state == C.CAMPAIGN_STATE_STOPPED
    await check_forgotten(world, running)
    bad = campaign("people/x", step("Bad Id", C.STEP_CHANNEL_SMS))
    bad.phases[0].entry_rule = "response("
    bad.goals[0].phase_id = "none"
    _, fields = await refused(world.stub.CreateCampaign(C.CreateCampaignRequest(campaign=bad)))
    assert {"campaign.segment", "campaign.goals[0].phase_id", "campaign.phases[0].entry_rule"} <= set(fields)
    unready = campaign("segments/none", step("mail", C.STEP_CHANNEL_EMAIL))
    unready.offer, unready.phases[0].survey = "offers/none", "surveys/none"
    lost = await world.stub.CreateCampaign(C.CreateCampaignRequest(campaign=unready))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.stub.StartCampaign(C.StartCampaignRequest(name=lost.name))
    for cause in ("no segments/none", "no offers/none", "no surveys/none", "step mail has no sender"):
        assert cause in caught.value.details()


async def check_forgotten(world: World, stopped: C.Campaign) -> None:
    """After so long the worker removes who met which variant, and the answer says so."""
    asked = C.GetExperimentRequest(campaign=stopped.name, phase_id="invite", step_id="sms")
    assert not (await world.stub.GetExperiment(asked)).HasField("touches_kept_since")
    touches, old = CampaignStore().touches, datetime.now(UTC) - timedelta(days=500)
    CAMPAIGNS.document._get_collection().update_many({}, {"$set": {"updated_at": old}})
    touches.update_many({}, {"$set": {"at": old}})
    decisions = DecisionDocument._get_collection()
    # As an earlier release left it: without the mark, which the migration gives.
    decisions.insert_one({"_id": "d1", "version": 1, "number": "+8613900000000", "created_at": old})
    assert [_mark_strangers(decisions.database, apply) for apply in (False, True, True)] == [1, 1, 0]
    world.run(worker._sweep, rounds=1)
    assert decisions.find_one({"_id": "d1"}) == {"_id": "d1", "version": 2, "created_at": ANY}
    found = await world.stub.GetExperiment(asked)
    assert found.HasField("touches_kept_since") and not touches.count_documents({})
    assert not sum(one.contact_count for one in found.variants)


async def test_a_preview_says_whom_each_phase_would_address_now(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(world.store)
    await never_quiet(world)
    once = C.ContactPolicy(name="contactPolicy", frequency_caps=[C.FrequencyCap(touches_max=1, days=7)])
    capped = C.UpdateContactPolicyRequest(
        contact_policy=once, update_mask=FieldMask(paths=["frequency_caps"])
    )
    await world.stub.UpdateContactPolicy(capped)
    segment = C.Segment(display_name="English", rule='language == "en"')
    await world.stub.CreateSegment(C.CreateSegmentRequest(segment=segment, segment_id="all"))
    made = campaign("segments/all", step("sms", C.STEP_CHANNEL_SMS))
    follow = made.phases.add(phase_id="follow", kind=C.PHASE_KIND_FOLLOW_UP, period=made.phases[0].period)
    follow.entry_rule = 'response("invite") == "interested"'
    follow.steps.add().CopyFrom(step("desk", C.STEP_CHANNEL_TOUCH_POINT))
    running = await start(world, "spring", made)

    async def previewed() -> tuple[int, list[tuple[int, int, dict[str, int]]]]:
        found = await world.stub.PreviewCampaign(C.PreviewCampaignRequest(name=running.name))
        phases = [(p.segment_count, p.reachable_count, dict(p.held_back)) for p in found.phases]
        return found.sampled_count, phases

    refused_or_complaining = {"NO_CONSENT": 1, "OPEN_COMPLAINT": 1}
    assert await previewed() == (0, [(PEOPLE, 10, refused_or_complaining), (0, 0, {})])
    world.run(worker._campaigns, rounds=2)
    for who, said in (("c03", C.CONTACT_RESPONSE_INTERESTED), ("c04", C.CONTACT_RESPONSE_DECLINED)):
        answer = C.RecordCampaignResponseRequest(campaign=running.name, customer=f"customers/{who}")
        answer.phase_id, answer.response = "invite", said
        await world.stub.RecordCampaignResponse(answer)
    # Their own message of this very step caps nobody for it; it does for the next phase.
    held = {**refused_or_complaining, "DO_NOT_CONTACT": 1}
    assert await previewed() == (0, [(PEOPLE, 9, held), (1, 0, {"FREQUENCY_CAP": 1})])

    # Half of many more do not live any more: counts are estimates for all of them.
    rows = [{"_id": f"m{n:03}", "language": "en", "alive": bool(n % 2)} for n in range(400 - PEOPLE)]
    ProfileDocument._get_collection().insert_many(rows)
    monkeypatch.setattr(campaign_servicer, "PREVIEWED", 100)
    sampled, phases = await previewed()
    counted = await world.stub.GetSegment(C.GetSegmentRequest(name="segments/all"))
    assert sampled == 100 and 120 < phases[0][0] < 290 and 120 < counted.member_count < 290


async def test_nothing_leaves_after_a_pause_and_all_of_it_after_the_resume(world: World) -> None:
    furnish(world.store)
    await never_quiet(world)
    segment = C.Segment(display_name="Gold", rule='tier == "gold"')
    await world.stub.CreateSegment(C.CreateSegmentRequest(segment=segment, segment_id="gold"))
    running = await start(world, "spring", campaign("segments/gold", step("sms", C.STEP_CHANNEL_SMS)))
    campaigns = Campaigns(MongoShelves(), world.store, world.settings.clock(), "CNY")

    def paused() -> None:
        Gateway.meanwhile = lambda: None
        campaigns.go(C.PauseCampaignRequest(name=running.name), "pause")

    # While the first of four messages is on its way.
    Gateway.meanwhile = paused
    world.run(worker._campaigns, rounds=3)
    assert len(Gateway.taken) == 1
    await world.stub.ResumeCampaign(C.ResumeCampaignRequest(name=running.name))
    world.run(worker._campaigns, rounds=3)
    assert sorted(one["customer"] for one in Gateway.taken) == [f"customers/c{n:02}" for n in (0, 3, 4, 5)]


async def test_people_enter_and_leave_by_events_and_are_called(world: World) -> None:
    furnish(world.store)
    await never_quiet(world)
    segment = C.Segment(
        display_name="Leaving",
        rule="wants_to_leave",
        trigger_event_types=[crm.LeaveIntentFlagged.DESCRIPTOR.full_name],
    )
    await world.stub.CreateSegment(C.CreateSegmentRequest(segment=segment, segment_id="leaving"))
    segments = Segments(MongoShelves(), world.store, CampaignStore())
    seconds = iter(range(100))

    def says(customer: str, wants: bool) -> None:
        told = crm.LeaveIntentFlagged(customer=f"customers/{customer}", wants_to_leave=wants)
        at = datetime.now(UTC) + timedelta(seconds=next(seconds))
        event = Event.of(told, source="crm", subject=told.customer, time=at)
        learn(Facts(world.store), event)
        segments.heard(event)

    says("c00", True)
    await start(world, "stay", campaign("segments/leaving", step("call", C.STEP_CHANNEL_OUTBOUND_CALL)))
    world.run(worker._campaigns)
    for customer in ("c03", "c04"):
        says(customer, True)
    says("c04", False)
    world.run(worker._campaigns, rounds=3)
    world.run(worker._campaigns)
    get = C.GetSegmentRequest(name="segments/leaving")
    assert (await world.stub.GetSegment(get)).member_count == 2
    ask = outbound_pb2.NextContactsRequest(holder="router", max_contacts=9)
    await switched(world, "stop", "--reason", "a wrong number")
    assert not (await world.outbound.NextContacts(ask)).contacts
    assert "a wrong number" in await switched(world, "stop", "--reason", "a wrong number, still")
    await switched(world, "resume")
    handed = (await world.outbound.NextContacts(ask)).contacts
    assert sorted(one.customer for one in handed) == ["customers/c00", "customers/c03"]
    assert handed[0].name.startswith("contactLists/stay.invite.call/contacts/")
    called = outbound_pb2.GetContactListRequest(name="contactLists/stay.invite.call")
    assert not (await world.outbound.GetContactList(called)).campaign_holds
    calling = outbound_pb2.RenewContactsRequest(
        holder="router", contacts=[one.name for one in handed], calling=True
    )
    assert len((await world.outbound.RenewContacts(calling)).contacts) == 2
    await world.stub.PauseCampaign(C.PauseCampaignRequest(name="campaigns/stay"))
    # Those handed out already are not called either.
    assert (await world.outbound.GetContactList(called)).campaign_holds
    assert not (await world.outbound.RenewContacts(calling)).contacts
    await world.outbound.ReturnContacts(outbound_pb2.ReturnContactsRequest(holder="router"))
    assert not (await world.outbound.NextContacts(ask)).contacts


async def test_the_workers_loops_build_sweep_and_learn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    bought = [Purchase(id=f"p{n}", customer=f"c{n}", product="tv", at=now) for n in range(9)]
    world.store.add_purchases(bought, now)
    world.run(worker._builder, rounds=1)
    assert world.store.serving().model == "association-000001"
    world.run(worker._builder, rounds=1)
    assert len(world.store.models(9, None)) == 1
    world.run(worker._sweep, rounds=1)
    begun: list[Any] = []

    class Learning:
        returncode = 0

        def __init__(self, command: list[str], **_: Any) -> None:
            begun.append(command)

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Learning)
    world.run(worker._learner, rounds=1)
    assert not begun
    Propensities(MongoShelves(), world.store, world.settings.clock(), 5).train()
    world.run(worker._learner, rounds=1)
    assert begun == [[sys.executable, "-m", "marketing.learn"]]
    # Between two looks nobody holds it, and so nobody misses its holder.
    held: list[Any] = []
    leases = ModelDocument._get_db()["leases"]

    def stopping(_: float) -> bool:
        held.append(leases.find_one({"_id": "propensity"}))
        return len(held) > 1

    worker._learner(world.settings).run(stopping)
    assert [lease["holder"] for lease in held] == ["", ""] and held[1]["epoch"] > held[0]["epoch"]


def test_a_sender_that_is_down_stops_only_its_own(mongo_uri: str, mongo_database: str) -> None:
    from tests.integration.marketing.test_marketing_campaigns import NOW, campaign, runner, step

    from marketing.campaign_delivery import Delivery
    from marketing.campaign_engine import Courtesy
    from marketing.campaign_store import CAMPAIGN_DOCUMENTS
    from marketing.documents import ProfileDocument
    from marketing.senders import Message, SenderConfig, Senders, SendFailed

    mongo.connect(MarketingSettings(mongo_uri=mongo_uri, mongo_database=mongo_database))
    mongo.ensure_indexes((*CAMPAIGN_DOCUMENTS, ProfileDocument))
    furnish(MongoStore())
    store, sent = CampaignStore(), []

    class Fine:
        def reaches(self, profile: Profile) -> bool:
            return True

        def send(self, message: Message) -> None:
            sent.append(message.id)

    class Down(Fine):
        tries = 0

        def send(self, message: Message) -> None:
            Down.tries += 1
            raise SendFailed("slow")

    senders = Senders(
        [SenderConfig(id="mail", channel=StepChannel.EMAIL, adapter="webhook", target="http://127.0.0.1:9/")]
    )
    senders._made["mail"] = Down()
    senders._built_in[StepChannel.WEBHOOK] = Fine()
    gold = 'tier == "gold"'
    campaigns = [
        campaign(step("m", StepChannel.EMAIL), id="mails", rule=gold),
        campaign(step("w", StepChannel.WEBHOOK), id="hooks", rule=gold),
    ]
    for made in campaigns:
        while runner(store).take_in(made, made.phases[0], NOW):
            pass
    never_quiet = Courtesy(quiet=())
    delivery = Delivery(store=store, senders=senders, values=lambda *_: {}, courtesy=never_quiet)
    delivery.deliver(campaigns, NOW)
    # One try a group is enough to know that a sender is down; nothing of its own is lost.
    assert Down.tries == 1 and len(set(sent)) == len(sent) == 5
    assert store.backlog(["mails"], "EMAIL") == (5, True)
    moment = NOW
    for _ in range(5 * 8):
        moment += timedelta(hours=2)
        delivery.deliver(campaigns, moment)
    # Tried a bounded number of times, then failed for good, and said so.
    assert store.backlog(["mails"], "EMAIL") == (0, False)
    assert (
        store.touches.count_documents({"channel": "EMAIL", "state": "FAILED", "outbox.0": {"$exists": True}})
        == 5
    )
    mongo.disconnect()
