"""The partner's side of callmesh, in Python with asyncio: an edge, an agent's desktop, a reader of events,
and any other RPC, with what every client has to get right done once.

    async with Client(Options(addresses={"routing": ["127.0.0.1:7120"], "crm": ["127.0.0.1:7140"]})) as
    client:
        customers = client.stub(customers_pb2_grpc.CustomerServiceStub)
        print(await customers.GetCustomer(customers_pb2.GetCustomerRequest(name="customers/1")))

- Errors are exceptions of their own, with the reason, the bad fields and the text in the caller's language
  (`errors`).
- What is safe to repeat is repeated, within the deadline (`client`): what only reads, what carries a
  `request_id` (one is filled in where it is empty), what is idempotent by contract, and anything that a limit
  refused.
- Clients spread over the servers of a service, leave one that is not there, and go back to it when it has
  been well for a while (`servers`).
- Streams that break are opened again where they were: a call by its place token (`edge`), a desktop by its
  session (`desk`), a subscription by its cursor (`events`).
"""

from callmesh_sdk.client import Client, Options
from callmesh_sdk.desk import Desk
from callmesh_sdk.edge import Caller
from callmesh_sdk.errors import (
    Aborted,
    AlreadyExists,
    CallError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServerFault,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from callmesh_sdk.events import Received, follow
from callmesh_sdk.servers import Homing

__all__ = [
    "Aborted",
    "AlreadyExists",
    "CallError",
    "Caller",
    "Client",
    "DeadlineExceeded",
    "Desk",
    "FailedPrecondition",
    "Homing",
    "InvalidArgument",
    "NotFound",
    "Options",
    "PermissionDenied",
    "Received",
    "ResourceExhausted",
    "ServerFault",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "follow",
]
