"""TLS from files: a server's certificate, a client's, and the authority that both are judged by.

Files are looked at again with every new connection, so that a renewed certificate counts without a restart.
What cannot be read then is left alone: the last good one goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from chassis import metrics
from chassis.errors import StartError
from chassis.watched import WatchedFiles

if TYPE_CHECKING:
    import grpc
    from cryptography import x509

    from chassis.config import ServiceSettings

_log = structlog.get_logger(__name__)
_begins = metrics.gauge(
    "callmesh_tls_not_before_timestamp_seconds", "When the server's certificate began to hold.", ("service",)
)
_ends = metrics.gauge(
    "callmesh_tls_not_after_timestamp_seconds", "When the server's certificate ends.", ("service",)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pem:
    """What the three files hold, PEM."""

    certificate: bytes
    key: bytes
    #: Authority of the other side's certificate.
    authority: bytes


class Certificates:
    """Certificate, key and authority of a process, kept up to date."""

    #: (generation, what was shown then).
    _pair: tuple[int, Pem] | None = None

    def __init__(self, settings: ServiceSettings) -> None:
        """StartError when a file cannot be read."""
        self.service = settings.service
        self._files = WatchedFiles([settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file])

    @property
    def generation(self) -> int:
        """+1 with every renewal that was noticed."""
        return self._files.generation

    def current(self) -> Pem:
        """The newest that could be read."""
        certificate, key, authority = self._files.contents()
        return Pem(certificate=certificate, key=key, authority=authority)

    def showable(self) -> Pem:
        """The newest whose key is the certificate's: of two files that are renewed one after the other, the
        first is there before the second. The very newest where none is.
        """
        pem, generation = self.current(), self.generation
        if self._pair is None or self._pair[0] != generation:
            usable = not pem.certificate or _usable(pem) is not None
            self._pair = (generation, pem if usable or self._pair is None else self._pair[1])
        return self._pair[1]


def certificates(settings: ServiceSettings) -> Certificates | None:
    """What the settings name; None for plain text. StartError when a file cannot be read."""
    return Certificates(settings) if settings.tls_cert_file else None


def server_credentials(found: Certificates, *, certified: bool) -> grpc.ServerCredentials:
    """For a server whose clients must show a certificate of the authority if `certified`. StartError when
    certificate and key cannot be used.
    """
    import grpc

    def configuration(pem: Pem) -> Any:
        pair = [(pem.key, pem.certificate)]
        return grpc.ssl_server_certificate_configuration(pair, root_certificates=pem.authority)

    def renewed() -> Any:
        before = found.generation
        pem = found.current()
        return configuration(pem) if found.generation != before and shows(pem) else None

    def shows(pem: Pem) -> bool:
        certificate = _usable(pem)
        if certificate is not None:
            _begins.labels(found.service).set(certificate.not_valid_before_utc.timestamp())
            _ends.labels(found.service).set(certificate.not_valid_after_utc.timestamp())
        return certificate is not None

    first = found.current()
    if not shows(first):
        raise StartError("the TLS certificate cannot be used with its key")
    return grpc.dynamic_ssl_server_credentials(configuration(first), renewed, certified)


def _usable(pem: Pem) -> x509.Certificate | None:
    """The certificate, if the key belongs to it: gRPC itself would say so by refusing every handshake."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        certificate = x509.load_pem_x509_certificate(pem.certificate)
        key = serialization.load_pem_private_key(pem.key, password=None)
        form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        belongs = certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)
    except (ValueError, TypeError) as error:
        _log.warning("tls.unusable", error=str(error))
        return None
    if not belongs:
        _log.warning("tls.unusable", error="the key is not the certificate's")
        return None
    return certificate


def channel_credentials(found: Certificates) -> grpc.ChannelCredentials:
    """For a client: it shows its certificate and trusts the authority."""
    import grpc

    pem = found.showable()
    return grpc.ssl_channel_credentials(pem.authority, pem.key, pem.certificate)


class TokenFile:
    """A bearer token in a file that somebody renews; none when no file is named."""

    def __init__(self, path: str) -> None:
        """StartError when the file cannot be read."""
        self._files = WatchedFiles([path]) if path else None
        self._known: str | None = None

    def token(self) -> str | None:
        """The newest that could be read."""
        if self._files is None:
            return None
        (text,) = self._files.contents()
        # An empty file is one that is being written.
        self._known = text.decode("ascii", "replace").strip() or self._known
        return self._known
