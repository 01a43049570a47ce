"""Every router restarted in turn while calls flow, as an upgrade or a rollback does it: nobody notices, and
the desktops are spread over the routers as before.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Sequence

import pytest
from bench.chaos.parties import Crowd
from tests.e2e.platform_parties import AGENTS, RECOVERY_SECONDS, REGIONS, WAIT_SECONDS, Wire, eventually

from callmesh.routing.v1 import agent_pb2
from cli.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(600)]

QUEUE = "rollout"
#: Callers at any time: fewer than there are agents, so that each is answered soon.
CALLERS = 6
#: Regions that are upgraded side by side, as every region has its own rolling update.
WAVES = (("beijing", "guangzhou"), ("shanghai", "chengdu"))
#: Nobody gives up because the machine is busy.
PATIENCE_SECONDS = 200.0


async def drained(stack: Stack, name: str) -> None:
    """SIGTERM; the router ends by itself, with 0, and is started again."""
    process = next(part.process for part in stack.parts() if part.name == name)
    assert process.send(signal.SIGTERM)

    async def ended() -> bool:
        return process.exit_code() is not None

    await eventually(ended, f"{name} ended", RECOVERY_SECONDS)
    assert process.exit_code() == 0
    await asyncio.to_thread(stack.restart, name)


async def idle(wire: Wire, agents: Sequence[str]) -> bool:
    """Whether the platform holds each of these agents for nothing and nobody."""
    questions = [agent_pb2.GetAgentStatusRequest(name=f"agents/{agent}") for agent in agents]
    found = [await wire.agents("beijing").GetAgentStatus(each, timeout=WAIT_SECONDS) for each in questions]
    return all(one.state == agent_pb2.AGENT_STATE_AVAILABLE and not one.calls_held for one in found)


async def test_routers_restarted_in_turn_lose_no_call(platform_stack: Stack, wire: Wire) -> None:
    """The books of the edges and the desktops say what became of every call, not the platform; an agent that
    was left with a call or an offer of one is not free at the end.
    """
    addresses = {region: platform_stack.address("routing", region) for region in REGIONS}
    agents = [agent for agent, (queue, _) in AGENTS.items() if queue == QUEUE]
    seed = secrets.randbelow(2**31)
    crowd = Crowd(addresses, agents, queue=QUEUE, patience_seconds=PATIENCE_SECONDS, seed=seed)
    enough = asyncio.Event()
    try:
        await crowd.open()
        load = asyncio.ensure_future(crowd.lines(CALLERS, enough))
        for wave in WAVES:
            await asyncio.gather(*(drained(platform_stack, f"routing-{region}") for region in wave))
        enough.set()
        await load
        await crowd.settle()
        unserved = crowd.unserved()
        await eventually(lambda: idle(wire, agents), "every agent free again", RECOVERY_SECONDS)
        away = await crowd.spread(RECOVERY_SECONDS)
        assert not away, f"desktops that did not go back to their own routers: {away}"
    finally:
        await crowd.close()
    verdict = crowd.verdict([])
    bad = [*verdict.calls_lost, *verdict.calls_untaken]
    assert not bad, crowd.story(bad)
    assert not unserved, crowd.story(unserved)
    assert not verdict.agents_double_booked
    assert verdict.calls_served > len(REGIONS) * CALLERS and {*sum(WAVES, ())} == set(REGIONS)
    assert verdict.reopened, "no caller's stream was cut: nothing was tried"
