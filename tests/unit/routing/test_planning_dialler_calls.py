"""An outbound call's stream: what the dialler makes of one that breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from callmesh.routing.v1 import call_pb2, directory_pb2, routing_pb2
from chassis.client import Dialer
from chassis.errors import Unavailable
from routing.planning import dialler_main
from routing.planning.dialler_main import GrpcCall, GrpcCalls, Peers
from routing.planning.dialler_ports import Person

PERSON = Person(contact="contactLists/l/contacts/c", number="+8613800138000", attempt=2)
CONNECTED = routing_pb2.RouteCallEvent(connected={"agent_address": "sip:a0"})
ENDED = routing_pb2.RouteCallEvent(ended={})
TALKING = call_pb2.Call(state=call_pb2.CALL_STATE_CONNECTED)
OVER = call_pb2.Call(state=call_pb2.CALL_STATE_ENDED)
WAITING = call_pb2.Call(state=call_pb2.CALL_STATE_WAITING)
LEFT = call_pb2.Call(state=call_pb2.CALL_STATE_WAITING, detached=True)


def refusal(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="no")


GONE, UNKNOWN = refusal(grpc.StatusCode.UNAVAILABLE), refusal(grpc.StatusCode.NOT_FOUND)


class Stream:
    """Tells what it is given, then breaks, or goes on until it is left."""

    def __init__(self, told: Sequence[Any], breaks: grpc.aio.AioRpcError | None) -> None:
        self._told, self._breaks = told, breaks
        self._left = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Any]:
        for event in self._told:
            yield event
        if self._breaks is not None:
            raise self._breaks
        await self._left.wait()
        raise asyncio.CancelledError

    def cancel(self) -> None:
        self._left.set()


class Router(Peers):
    """Answers in turn when it is asked what became of a call, and goes on with the last answer."""

    def __init__(
        self, told: Sequence[Any], breaks: grpc.aio.AioRpcError | None, states: Sequence[Any] = ()
    ) -> None:
        super().__init__(Dialer(), "127.0.0.1:1", "127.0.0.1:1")
        self._stream = Stream(told, breaks)
        self._states = list(states)
        self.asked = 0
        self.placed: list[Any] = []

    @property
    def routing(self) -> Any:
        return self

    def RouteCall(self, request: Any, **_: Any) -> Stream:
        self.placed.append(request)
        return self._stream

    async def GetCall(self, request: Any, **_: Any) -> Any:
        self.asked += 1
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        if isinstance(state, Exception):
            raise state
        return state

    async def HangUp(self, request: Any, **_: Any) -> Any:
        return call_pb2.Call()

    @property
    def directory(self) -> Any:
        return self

    async def GetAgent(self, request: Any, **_: Any) -> Any:
        if request.name != "agents/a0":
            raise UNKNOWN
        return directory_pb2.Agent(name=request.name, address="sip:a0")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialler_main, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(dialler_main, "ASK_TALK_SECONDS", 0.0)


async def begun(router: Router) -> GrpcCall:
    call = await GrpcCalls(router, "callout", "dialler-x").begin(PERSON, "a0")
    assert isinstance(call, GrpcCall)
    return call


@pytest.mark.parametrize(
    ("told", "breaks", "states", "answered"),
    [
        pytest.param([CONNECTED, ENDED], None, [], True, id="told to its end"),
        pytest.param([ENDED], None, [], False, id="ended before anybody accepted"),
        pytest.param([], refusal(grpc.StatusCode.FAILED_PRECONDITION), [], False, id="refused"),
        pytest.param([], GONE, [GONE, TALKING, OVER], True, id="accepted as the router died"),
        pytest.param([], GONE, [WAITING, LEFT], False, id="not accepted as the router died"),
        pytest.param([], GONE, [UNKNOWN], False, id="never placed"),
        pytest.param(
            [CONNECTED], GONE, [GONE, TALKING, TALKING, OVER], True, id="talks on as the router dies"
        ),
    ],
)
async def test_a_broken_stream_says_nothing_of_a_call(
    told: list[Any], breaks: grpc.aio.AioRpcError | None, states: list[Any], answered: bool
) -> None:
    router = Router(told, breaks, states)
    call = await begun(router)
    async with asyncio.timeout(30):
        assert await call.wait_answered() is answered
        await call.wait_ended()
    assert router.asked == len(states)


@pytest.mark.parametrize(("agent", "address"), [("agents/a0", "sip:a0"), ("agents/gone", "")])
async def test_who_is_on_a_line_reaches_the_seat_though_the_router_died(agent: str, address: str) -> None:
    """The word that it is connected, with the seat's address, was lost with the stream."""
    talking = call_pb2.Call(state=call_pb2.CALL_STATE_CONNECTED, agent=agent)
    call = await GrpcCalls(Router([], GONE, [talking, OVER]), "callout", "dialler-x").begin(PERSON, "a0", "l")
    async with asyncio.timeout(30):
        assert await call.wait_answered() and call.address == address
        await call.wait_ended()


async def test_a_conversation_outlives_its_stream() -> None:
    router = Router([CONNECTED], GONE, [TALKING])
    call = await begun(router)
    async with asyncio.timeout(30):
        assert await call.wait_answered() and call.address == "sip:a0"
        ended = asyncio.ensure_future(call.wait_ended())
        while router.asked < 5:
            await asyncio.sleep(0)
        assert not ended.done()
        router._states = [OVER]
        await ended


async def test_a_call_withdrawn_before_it_was_placed_frees_its_agent() -> None:
    call = await begun(Router([], None, [UNKNOWN]))
    async with asyncio.timeout(30):
        await call.withdraw()
        assert await call.wait_answered() is False


@pytest.mark.parametrize(("state", "answered"), [(LEFT, False), (TALKING, True)])
async def test_a_call_that_its_agent_does_not_take_is_nobody_elses(
    monkeypatch: pytest.MonkeyPatch, state: call_pb2.Call, answered: bool
) -> None:
    """It was chosen for this agent's skills; so it is taken back before others could be offered it."""
    assert dialler_main.OFFER_SECONDS < dialler_main.OWN_SECONDS
    monkeypatch.setattr(dialler_main, "OFFER_SECONDS", 0)
    router = Router([], None, [state])
    call = await begun(router)
    assert router.placed[0].call.preferred_agent_timeout.seconds == dialler_main.OWN_SECONDS
    async with asyncio.timeout(30):
        assert await call.wait_answered() is answered
    call._reading.cancel()
    await asyncio.gather(call._reading, return_exceptions=True)


OTHERS = routing_pb2.RouteCallEvent(offered={"offer_id": "o", "agent": "agents/a1"})
MINE = routing_pb2.RouteCallEvent(offered={"offer_id": "o", "agent": "agents/a0"})
REFUSED = routing_pb2.RouteCallEvent(offer_ended={})


@pytest.mark.parametrize(
    ("told", "states", "answered"),
    [
        pytest.param([OTHERS], [WAITING, LEFT], False, id="gone before it came"),
        pytest.param([MINE, REFUSED], [LEFT], False, id="declined"),
        pytest.param([MINE, REFUSED], [GONE, WAITING, LEFT], False, id="declined as the leader changed"),
        pytest.param([MINE, REFUSED], [TALKING, OVER], True, id="another has accepted by then"),
    ],
)
async def test_what_its_agent_does_not_want_is_not_given_back_before_it_is_nobody_elses(
    monkeypatch: pytest.MonkeyPatch, told: list[Any], states: list[Any], answered: bool
) -> None:
    """Routing offers it to the next at once. Given back while they accept, the person is called twice."""
    monkeypatch.setattr(dialler_main, "LEFT_LOOK_SECONDS", 0.0)
    router = Router(told, None, states)
    call = await begun(router)
    async with asyncio.timeout(30):
        assert await call.wait_answered() is answered
        await call.wait_ended()
    assert router._stream._left.is_set() and router.asked >= len(states)


async def test_the_next_agent_whose_desktop_takes_a_line_by_itself_is_not_left_on_an_empty_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialler_main, "LEFT_LOOK_SECONDS", 0.0)
    talking = call_pb2.Call(state=call_pb2.CALL_STATE_CONNECTED, agent="agents/a0")
    router = Router([OTHERS, REFUSED], None, [WAITING, talking, OVER])
    call = await GrpcCalls(router, "callout", "dialler-x").begin(PERSON, "a0", "l")
    async with asyncio.timeout(30):
        assert await call.wait_answered() and call.address == "sip:a0"
        await call.wait_ended()


async def test_a_call_of_which_nothing_is_known_is_not_said_to_be_unanswered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialler_main, "OFFER_SECONDS", 0)
    call = await begun(Router([], GONE, [GONE]))
    with pytest.raises(Unavailable):
        await call.wait_answered()
    call._reading.cancel()
    await asyncio.gather(call._reading, return_exceptions=True)
