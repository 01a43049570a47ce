"""The real parts of a local stack, started and stopped by code: MongoDB, RabbitMQ and the project's own
processes.

`callmesh up` and the test fixtures share it. Everything lives under a run directory and listens on loopback
only. Each part writes a record (`<name>.pid.json`) with its process id, the start time that the kernel gave
it and a random token that all its descendants inherit: whoever opens the same run directory later can tell
the part's processes from any other, even after process ids were reused, and stops exactly those. Linux only
(it reads /proc).
"""

from chassis.localstack.group import GrpcReady, HttpReady, ProcessGroup, ProcessStatus, ServiceSpec, TcpReady
from chassis.localstack.mongo import MongoNode, find_mongod
from chassis.localstack.ports import PortInUse, free_ports, port_is_free
from chassis.localstack.process import ManagedProcess, ProcessFailed
from chassis.localstack.rabbit import RabbitNode, find_rabbitmq_server

__all__ = [
    "GrpcReady",
    "HttpReady",
    "ManagedProcess",
    "MongoNode",
    "PortInUse",
    "ProcessFailed",
    "ProcessGroup",
    "ProcessStatus",
    "RabbitNode",
    "ServiceSpec",
    "TcpReady",
    "find_mongod",
    "find_rabbitmq_server",
    "free_ports",
    "port_is_free",
]
