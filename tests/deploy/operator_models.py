"""What the community operators' resources may hold, as far as the chart uses them: nothing else passes.

MongoDBCommunity of mongodbcommunity.mongodb.com/v1 (operator 0.9 and later) and RabbitmqCluster of
rabbitmq.com/v1beta1 (operator 2.11 and later, which writes `connection_string` into its secret).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9.]+([numkKMGTPE]i?)?$")]


class Strict(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    """Of any object."""

    name: Name
    namespace: Name
    labels: dict[str, str]
    annotations: dict[str, str] = {}


class Resources(Strict):
    """Of a container."""

    requests: dict[Literal["cpu", "memory"], Quantity] = {}
    limits: dict[Literal["cpu", "memory"], Quantity] = {}


# --- MongoDB ----------------------------------------------------------------------------------------------


class Role(Strict):
    """A role in one database."""

    name: str
    db: str


class SecretReference(Strict):
    """A key of a secret."""

    name: Name
    key: str = "password"


class User(Strict):
    """A user that the operator makes."""

    name: str
    db: str = "admin"
    passwordSecretRef: SecretReference
    roles: list[Role]
    scramCredentialsSecretName: Name
    connectionStringSecretName: Name | None = None


class Authentication(Strict):
    """How users prove who they are."""

    modes: list[Literal["SCRAM", "SCRAM-SHA-256", "SCRAM-SHA-1"]]
    ignoreUnknownUsers: bool | None = None


class Security(Strict):
    """Authentication; the chart asks for no TLS between the members."""

    authentication: Authentication


class StatefulSetPart(Strict):
    """Merged into the operator's StatefulSet; the API's own schema holds for it."""

    spec: dict[str, Any]


class MongoSpec(Strict):
    """The replica set."""

    type: Literal["ReplicaSet"]
    members: int = Field(ge=1, le=50)
    arbiters: int = 0
    version: str
    security: Security
    users: list[User] = Field(min_length=1)
    statefulSet: StatefulSetPart


class MongoDBCommunity(Strict):
    """A MongoDB of the community operator."""

    apiVersion: Literal["mongodbcommunity.mongodb.com/v1"]
    kind: Literal["MongoDBCommunity"]
    metadata: Metadata
    spec: MongoSpec


# --- RabbitMQ ---------------------------------------------------------------------------------------------


class Persistence(Strict):
    """A node's volume."""

    storageClassName: Name | None = None
    storage: Quantity


class Broker(Strict):
    """Its configuration files."""

    additionalConfig: str = Field(default="", max_length=2000)
    additionalPlugins: list[str] = Field(default=[], max_length=100)


class RabbitmqSpec(Strict):
    """The cluster."""

    replicas: int = Field(ge=0)
    image: str = ""
    persistence: Persistence
    resources: Resources
    rabbitmq: Broker
    terminationGracePeriodSeconds: int = Field(default=604_800, ge=0)


class RabbitmqCluster(Strict):
    """A RabbitMQ of the cluster operator."""

    apiVersion: Literal["rabbitmq.com/v1beta1"]
    kind: Literal["RabbitmqCluster"]
    metadata: Metadata
    spec: RabbitmqSpec


MODELS: dict[str, type[Strict]] = {"MongoDBCommunity": MongoDBCommunity, "RabbitmqCluster": RabbitmqCluster}
