"""What a dialler that was killed has left behind goes back to its lists.

Contacts that it had not begun come back by themselves: their reservation is short. One that was being offered
is reserved for a conversation, because the agent may have accepted in the last moment, and then somebody is
spoken to. Routing knows which: it ends an offer whose stream has broken. So the other diallers of the region
look, now and then, at what is reserved for a dialler that is none of them; where the offer has ended and
nobody had accepted it, the contact goes back, in the name of the one who has gone.

A dialler that lives gives such a contact back itself, at once. So only what was found twice is taken: the
second time it is sure that nobody looks after it. An accepted one stays reserved: the desktop reports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from chassis import metrics
from chassis.errors import CallmeshError
from routing.planning.dialler_ports import Calls, Lists

log = structlog.get_logger(__name__)

#: Contacts that are looked at each time.
LOOKED_AT_MAX = 200

_taken_back = metrics.counter(
    "callmesh_dialler_left_behind_total", "Contacts that went back for a dialler that had gone."
)


@dataclass(kw_only=True, slots=True)
class LeftBehind:
    """One a dialler."""

    lists: Lists
    calls: Calls
    #: (contact, end of its reservation) whose offer had ended when it was looked at last.
    _found: frozenset[tuple[str, int]] = field(default_factory=frozenset)

    async def look(self, names: Sequence[str]) -> None:
        """At these lists, `contactLists/{contact_list}`. What cannot be asked is looked at the next time."""
        found: set[tuple[str, int]] = set()
        left = LOOKED_AT_MAX
        try:
            for name in names:
                if left <= 0:
                    break
                for one in (await self.lists.reserved(name))[:left]:
                    left -= 1
                    if not await self.calls.unanswered(one.person):
                        continue
                    key = (one.person.contact, one.person.lease_ms)
                    if key in self._found:
                        await self.lists.give_back([one.person.contact], one.holder)
                        _taken_back.inc()
                        log.info("contact_left_behind", contact=one.person.contact, holder=one.holder)
                    else:
                        found.add(key)
        except CallmeshError as error:
            log.info("left_behind_not_seen", error=error.reason)
        self._found = frozenset(found)
