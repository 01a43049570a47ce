"""Thin gRPC of menus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from callmesh.routing.v1 import menus_pb2 as pb
from callmesh.routing.v1 import menus_pb2_grpc
from chassis.callcontext import current_identity
from chassis.clock import Clock
from routing.menus.handlers import MenuHandlers
from routing.menus.recorder import Recorder
from routing.menus.running import Running
from routing.menus.sessions import Sessions
from routing.menus.store import MongoMenus
from routing.menus.tokens import SessionTokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymongo.asynchronous.database import AsyncDatabase

    from routing.config import RoutingSettings


class MenuServicer(menus_pb2_grpc.MenuServiceServicer):
    """For IVRs, apps, desktops and operators."""

    def __init__(self, handlers: MenuHandlers, sessions: Sessions) -> None:
        self._handlers = handlers
        self._sessions = sessions

    async def CreateMenu(self, request: pb.CreateMenuRequest, context: Any) -> pb.Menu:
        return await self._handlers.create(request, current_identity().subject)

    async def GetMenu(self, request: pb.GetMenuRequest, context: Any) -> pb.Menu:
        return await self._handlers.get(request.name)

    async def ListMenus(self, request: pb.ListMenusRequest, context: Any) -> pb.ListMenusResponse:
        return await self._handlers.list(request)

    async def PublishMenu(self, request: pb.PublishMenuRequest, context: Any) -> pb.Menu:
        return await self._handlers.publish(request)

    async def StepMenu(self, request: pb.StepMenuRequest, context: Any) -> pb.StepMenuResponse:
        return await self._sessions.step(request)

    async def SetShortcut(self, request: pb.SetShortcutRequest, context: Any) -> pb.Shortcut:
        return await self._handlers.set_shortcut(request)

    async def ListShortcuts(self, request: pb.ListShortcutsRequest, context: Any) -> pb.ListShortcutsResponse:
        return await self._handlers.shortcuts(request)

    async def RebuildMenu(self, request: pb.RebuildMenuRequest, context: Any) -> pb.RebuildMenuResponse:
        return await self._handlers.rebuild(request, current_identity().subject)

    async def GetMenuStats(self, request: pb.GetMenuStatsRequest, context: Any) -> pb.MenuStats:
        return await self._handlers.stats(request)

    async def CompareMenus(self, request: pb.CompareMenusRequest, context: Any) -> pb.CompareMenusResponse:
        return await self._handlers.compare(request)

    async def ChoosePromotion(
        self, request: pb.ChoosePromotionRequest, context: Any
    ) -> pb.ChoosePromotionResponse:
        return await self._sessions.promotion(request)


class Menus:
    """Menus of one router, put together."""

    def __init__(
        self,
        settings: RoutingSettings,
        database: AsyncDatabase[dict[str, Any]],
        key: bytes,
        clock: Clock,
        zone: Callable[[], str],
    ) -> None:
        store = MongoMenus(database)
        tokens = SessionTokens(key, life_span_ms=settings.menu_session_seconds * 1000)
        running = Running(store, clock, seconds=settings.menu_poll_seconds)
        #: Its `run` has to be kept running.
        self.recorder = Recorder(
            store, days=settings.menu_record_days, pending_max=settings.menu_records_waiting_max
        )
        self.handlers = MenuHandlers(store, running, tokens, clock)
        self.sessions = Sessions(
            store=store,
            running=running,
            recorder=self.recorder,
            tokens=tokens,
            clock=clock,
            zone=zone,
            caller_seconds=settings.profile_seconds,
        )

    def binding(self) -> tuple[Any, Any, Any]:
        """(descriptor, add function, servicer)."""
        return (
            pb.DESCRIPTOR.services_by_name["MenuService"],
            menus_pb2_grpc.add_MenuServiceServicer_to_server,
            MenuServicer(self.handlers, self.sessions),
        )
