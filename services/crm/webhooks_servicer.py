"""The gRPC face of webhooks."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from callmesh.crm.v1 import webhooks_pb2, webhooks_pb2_grpc
from chassis.callcontext import current_identity
from chassis.errors import InvalidArgument
from chassis.fieldmask import apply_mask
from chassis.idempotency import content_fingerprint, request_key
from chassis.ids import parse_name
from chassis.mongo import etag, parse_etag
from chassis.pagination import Page
from crm import convert
from crm.app import App
from crm.records import Raw

_STATES = {
    "PENDING": webhooks_pb2.WebhookDelivery.STATE_PENDING,
    "DELIVERED": webhooks_pb2.WebhookDelivery.STATE_DELIVERED,
    "FAILED": webhooks_pb2.WebhookDelivery.STATE_FAILED,
}


def _webhook(name: str, field: str = "name") -> str:
    return parse_name(field, "webhooks", name)


def webhook_in(message: Any) -> dict[str, Any]:
    """A webhook's fields as a caller wrote them, not checked yet."""
    return {"url": message.url, "event_types": list(message.event_types), "enabled": message.enabled}


def webhook_out(raw: Raw, secret: str = "") -> webhooks_pb2.Webhook:
    """A webhook as callers see it."""
    return webhooks_pb2.Webhook(
        name=f"webhooks/{raw['_id']}",
        url=raw["url"],
        event_types=raw.get("event_types") or (),
        enabled=bool(raw.get("enabled")),
        secret=secret,
        disable_reason=raw.get("disable_reason") or "",
        create_time=convert.timestamp(raw.get("created_at")),
        update_time=convert.timestamp(raw.get("updated_at")),
        etag=etag(raw["version"]),
    )


def delivery_out(raw: Raw) -> webhooks_pb2.WebhookDelivery:
    """A delivery as callers see it."""
    pending = raw["state"] == "PENDING"
    return webhooks_pb2.WebhookDelivery(
        name=f"webhooks/{raw['webhook']}/deliveries/{raw['event_id']}",
        event_id=raw["event_id"],
        event_type=raw["event_type"],
        state=_STATES[raw["state"]],
        attempt_count=raw.get("attempts") or 0,
        last_status=raw.get("last_status") or 0,
        last_error=raw.get("last_error") or "",
        next_attempt_time=convert.ms_timestamp(raw.get("next_ms") if pending else None),
        create_time=convert.ms_timestamp(raw.get("created_ms")),
    )


class WebhookServicer(webhooks_pb2_grpc.WebhookServiceServicer):
    """WebhookService."""

    def __init__(self, app: App) -> None:
        self._webhooks = app.webhooks

    def CreateWebhook(self, request: webhooks_pb2.CreateWebhookRequest, context: Any) -> webhooks_pb2.Webhook:
        """Creates a webhook and tells its secret."""
        key = request_key(current_identity(), "CreateWebhook", request.request_id)
        done, secret = self._webhooks.create(
            request.webhook_id,
            webhook_in(request.webhook),
            key,
            content_fingerprint(request) if key else None,
        )
        return webhook_out(done, secret)

    def GetWebhook(self, request: webhooks_pb2.GetWebhookRequest, context: Any) -> webhooks_pb2.Webhook:
        """One webhook."""
        return webhook_out(self._webhooks.get(_webhook(request.name)))

    def ListWebhooks(
        self, request: webhooks_pb2.ListWebhooksRequest, context: Any
    ) -> webhooks_pb2.ListWebhooksResponse:
        """A page of webhooks."""
        page = Page.of(request)
        shown, token = page.cut(self._webhooks.page(page.value(str), page.limit + 1), itemgetter("_id"))
        return webhooks_pb2.ListWebhooksResponse(
            webhooks=[webhook_out(raw) for raw in shown], next_page_token=token
        )

    def UpdateWebhook(self, request: webhooks_pb2.UpdateWebhookRequest, context: Any) -> webhooks_pb2.Webhook:
        """Changes a webhook."""

        def edit(raw: Raw) -> dict[str, Any]:
            message = webhook_out(raw)
            allowed = {"url", "event_types", "enabled"}
            apply_mask(message, request.webhook, request.update_mask, allowed=allowed)
            return webhook_in(message)

        done = self._webhooks.update(
            _webhook(request.webhook.name, "webhook.name"),
            edit,
            parse_etag("webhook.etag", request.webhook.etag),
        )
        return webhook_out(done)

    def DeleteWebhook(self, request: webhooks_pb2.DeleteWebhookRequest, context: Any) -> webhooks_pb2.Webhook:
        """Deletes a webhook and what waits for it."""
        return webhook_out(self._webhooks.delete(_webhook(request.name), parse_etag("etag", request.etag)))

    def RotateWebhookSecret(
        self, request: webhooks_pb2.RotateWebhookSecretRequest, context: Any
    ) -> webhooks_pb2.Webhook:
        """Makes a new secret and tells it."""
        return webhook_out(*self._webhooks.rotate(_webhook(request.name)))

    def TestWebhook(
        self, request: webhooks_pb2.TestWebhookRequest, context: Any
    ) -> webhooks_pb2.WebhookDelivery:
        """Posts a sample now."""
        return delivery_out(self._webhooks.test(_webhook(request.name)))

    def ListWebhookDeliveries(
        self, request: webhooks_pb2.ListWebhookDeliveriesRequest, context: Any
    ) -> webhooks_pb2.ListWebhookDeliveriesResponse:
        """A page of deliveries."""
        page = Page.of(request)
        names = {number: name for name, number in _STATES.items()}
        if request.state and request.state not in names:
            raise InvalidArgument(field="state", why=f"has no value {request.state}")
        state, webhook = names.get(request.state, ""), _webhook(request.parent, "parent")
        found = self._webhooks.deliveries(webhook, state, page.key(int, str), page.limit + 1)
        shown, token = page.cut(found, lambda raw: (raw["created_ms"], raw["_id"]))
        return webhooks_pb2.ListWebhookDeliveriesResponse(
            webhook_deliveries=[delivery_out(raw) for raw in shown], next_page_token=token
        )

    def ReplayWebhookDeliveries(
        self, request: webhooks_pb2.ReplayWebhookDeliveriesRequest, context: Any
    ) -> webhooks_pb2.ReplayWebhookDeliveriesResponse:
        """Sends deliveries of a span again."""
        if not request.HasField("start_time"):
            raise InvalidArgument(field="start_time", why="must be set")
        ended = request.HasField("end_time")
        count = self._webhooks.replay(
            _webhook(request.name),
            int(request.start_time.ToMilliseconds()),
            int(request.end_time.ToMilliseconds()) if ended else None,
            request.failed_only,
        )
        return webhooks_pb2.ReplayWebhookDeliveriesResponse(replayed_count=count)
