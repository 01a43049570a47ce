"""Gateways and their lines, as the dialler sees them: see proto/callmesh/dialler/v1/lines.proto.

A line is RINGING until the gateway says what came of it; the dialler drops it, or bridges it when a person
has answered, and it is free again when the gateway says so or the gateway has gone. What a gateway does not
answer in time is lost: nobody waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration

from callmesh.dialler.v1 import lines_pb2 as pb
from chassis.errors import InvalidArgument, ResourceExhausted, Unavailable
from chassis.ids import check_id, new_id
from routing.planning.dialler_ports import Call, LineResult, Person

#: A line rings so long, and its gateway may take so much longer to say what came of it, real seconds.
RING_SECONDS, RING_GRACE_SECONDS = 25, 5.0
#: Gateways of one dialler, lines of one gateway, and orders that one has not read yet.
GATEWAYS_MAX, LINES_MAX, ORDERS_MAX = 64, 10_000, 30_000
#: How soon another try makes sense, real seconds.
RETRY_SECONDS = 5.0
_RESULTS: Mapping[int, LineResult] = {
    pb.LINE_END_UNSPECIFIED: LineResult.NO_ANSWER,
    pb.LINE_END_NO_ANSWER: LineResult.NO_ANSWER,
    pb.LINE_END_BUSY: LineResult.BUSY,
    pb.LINE_END_WRONG_NUMBER: LineResult.WRONG_NUMBER,
    pb.LINE_END_FAILED: LineResult.NETWORK_FAILURE,
    pb.LINE_END_HANG_UP: LineResult.NO_ANSWER,
}


class GatewayLine:
    """One line of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.line_id = new_id("line-")
        self._gateway = gateway
        self._result: asyncio.Future[LineResult] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self._dropped = False
        self.bridged = False

    def ring(self, person: Person) -> None:
        """Asks the gateway to."""
        self._gateway.order(
            dial=pb.ServeLinesResponse.Dial(
                line=self.line_id,
                number=person.number,
                ring_timeout=Duration(seconds=RING_SECONDS),
                contact=person.contact,
            )
        )

    async def wait_result(self) -> LineResult:
        try:
            async with asyncio.timeout(RING_SECONDS + RING_GRACE_SECONDS):
                return await asyncio.shield(self._result)
        except TimeoutError:
            self.drop()
            return LineResult.LOST

    def bridge(self, call: Call, agent: str) -> None:
        self.bridged = True
        order = pb.ServeLinesResponse.Bridge(
            line=self.line_id, call_id=call.call_id, agent=f"agents/{agent}", agent_address=call.address
        )
        self._gateway.order(bridge=order)

    def drop(self, *, abandoned: bool = False) -> None:
        if not self._dropped and not self._ended.is_set():
            self._dropped = True
            self._gateway.order(drop=pb.ServeLinesResponse.Drop(line=self.line_id, abandoned=abandoned))

    async def wait_ended(self) -> None:
        await self._ended.wait()

    def answered(self, answerer: int) -> None:
        """The gateway says so; repeats change nothing."""
        if self._result.done():
            return
        machine = answerer == pb.ANSWERER_MACHINE
        self._result.set_result(LineResult.MACHINE if machine else LineResult.ANSWERED)
        if machine:
            self.drop()

    def over(self, result: LineResult) -> None:
        """The line is free again, or nobody knows of it any more."""
        if not self._result.done():
            self._result.set_result(result)
        self._ended.set()


@dataclass(eq=False, slots=True)
class Gateway:
    """One gateway's stream."""

    id: str
    lines_max: int
    lines: dict[str, GatewayLine] = field(default_factory=dict)
    #: None ends the stream.
    orders: asyncio.Queue[pb.ServeLinesResponse | None] = field(
        default_factory=lambda: asyncio.Queue(ORDERS_MAX)
    )
    gone: bool = False
    #: The gateway did not read its orders.
    slow: bool = False

    @property
    def room(self) -> int:
        """Lines that could ring now."""
        return 0 if self.gone else self.lines_max - len(self.lines)

    def order(
        self,
        *,
        dial: pb.ServeLinesResponse.Dial | None = None,
        bridge: pb.ServeLinesResponse.Bridge | None = None,
        drop: pb.ServeLinesResponse.Drop | None = None,
    ) -> None:
        """Tells the gateway; one that reads nothing is done with."""
        if self.gone:
            return
        # The last place is kept for the word that ends the stream.
        if self.orders.qsize() >= ORDERS_MAX - 1:
            self.slow = True
            self.leave()
            return
        self.orders.put_nowait(pb.ServeLinesResponse(dial=dial, bridge=bridge, drop=drop))

    def heard(self, report: pb.ServeLinesRequest) -> None:
        """What the gateway says of its lines; of those it has none of, nothing. Raises InvalidArgument."""
        kind = report.WhichOneof("report")
        if kind == "answered":
            if report.answered.answerer not in pb.Answerer.values():
                raise InvalidArgument(field="answered.answerer", why="must be PERSON or MACHINE")
            line = self.lines.get(check_id("answered.line", report.answered.line))
            if line is not None:
                line.answered(report.answered.answerer)
        elif kind == "ended":
            if report.ended.end not in _RESULTS:
                raise InvalidArgument(field="ended.end", why="must be one of LineEnd")
            line = self.lines.pop(check_id("ended.line", report.ended.line), None)
            if line is not None:
                line.over(_RESULTS[report.ended.end])
        else:
            raise InvalidArgument(field=kind or "report", why="must be answered or ended, after open")

    def leave(self) -> None:
        """The stream ends: what rings is lost, what is bridged goes on without us."""
        if self.gone:
            return
        self.gone = True
        self.orders.put_nowait(None)
        for line in self.lines.values():
            if not line.bridged:
                line.over(LineResult.LOST)
        self.lines.clear()


class Gateways:
    """All gateways of a dialler. Belongs to one event loop."""

    def __init__(self) -> None:
        self._known: dict[str, Gateway] = {}
        self._ending = False

    def capacity(self) -> int:
        return sum(each.lines_max for each in self._known.values())

    def room(self) -> int:
        return sum(each.room for each in self._known.values())

    def dial(self, person: Person) -> GatewayLine:
        """On the gateway with the most room."""
        best = max(self._known.values(), key=lambda each: each.room, default=None)
        if best is None or best.room <= 0:
            raise Unavailable(why="no gateway has a line", retry_seconds=RETRY_SECONDS)
        line = GatewayLine(best)
        best.lines[line.line_id] = line
        line.ring(person)
        return line

    def open(self, report: pb.ServeLinesRequest) -> Gateway:
        """A gateway by its first word. Raises InvalidArgument, ResourceExhausted, Unavailable."""
        if report.WhichOneof("report") != "open":
            raise InvalidArgument(field="open", why="must come first")
        id = check_id("open.gateway", report.open.gateway)
        if not 1 <= report.open.lines_max <= LINES_MAX:
            why = f"must be 1 to {LINES_MAX}, got {report.open.lines_max}"
            raise InvalidArgument(field="open.lines_max", why=why)
        if self._ending:
            raise Unavailable(why="the dialler ends", retry_seconds=RETRY_SECONDS)
        before = self._known.pop(id, None)
        if before is not None:
            before.leave()
        if len(self._known) >= GATEWAYS_MAX:
            raise ResourceExhausted(
                subject="dialler", limit=f"{GATEWAYS_MAX} gateways", retry_seconds=RETRY_SECONDS
            )
        found = self._known[id] = Gateway(id, report.open.lines_max)
        return found

    def close(self, gateway: Gateway) -> None:
        """A gateway's stream has ended; safe to repeat."""
        gateway.leave()
        if self._known.get(gateway.id) is gateway:
            del self._known[gateway.id]

    def end(self) -> None:
        """The dialler ends: so do all streams, and no other begins."""
        self._ending = True
        for gateway in list(self._known.values()):
            self.close(gateway)
