"""Events between services: the envelope here, and around it the topology, the publisher and the entrypoint.

Importing this package loads neither grpc nor eventlet, so gRPC processes make events with it and workers
publish and consume them.
"""

from chassis.bus.event import EVENT_BYTES_MAX, Event, MalformedEvent

__all__ = ["EVENT_BYTES_MAX", "Event", "MalformedEvent"]
