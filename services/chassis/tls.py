"""TLS from files: a server's certificate, a client's, and the authority that both are judged by.

Files are looked at again with every new connection, so that a renewed certificate counts without a restart.
What cannot be read then is left alone: the last good one goes on.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from chassis.errors import StartError

if TYPE_CHECKING:
    import grpc

    from chassis.config import ServiceSettings

_log = structlog.get_logger(__name__)

#: What RFC 8705 calls the SHA-256 of a certificate in a token's `cnf`.
THUMBPRINT = "x5t#S256"
#: Largest file that is taken for a certificate, key or token, bytes.
FILE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Pem:
    """What the three files hold, PEM."""

    certificate: bytes
    key: bytes
    #: Authority of the other side's certificate.
    authority: bytes


def _read(path: Path) -> bytes:
    if path.stat().st_size > FILE_BYTES_MAX:
        raise ValueError(f"is larger than {FILE_BYTES_MAX} bytes")
    return path.read_bytes()


class WatchedFiles:
    """Files whose contents are read again when one of them has changed."""

    def __init__(self, paths: Sequence[str]) -> None:
        """StartError when one of them cannot be read now."""
        self._paths = tuple(Path(path) for path in paths)
        self._seen: object = None
        self._contents: tuple[bytes, ...] = ()
        #: +1 with every change that could be read.
        self.generation = 0
        try:
            self._look()
        except (OSError, ValueError) as error:
            raise StartError(f"a file that the settings name cannot be read: {error}") from None

    def contents(self) -> tuple[bytes, ...]:
        """What they hold; the last that could be read, when now one of them cannot."""
        try:
            self._look()
        except (OSError, ValueError) as error:
            _log.warning("files.unreadable", files=[path.name for path in self._paths], error=str(error))
        return self._contents

    def _look(self) -> None:
        # A mounted secret is a link that is moved: its target's time and number change together.
        seen = [(stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in map(Path.stat, self._paths)]
        if seen == self._seen:
            return
        self._contents = tuple(_read(path) for path in self._paths)
        self._seen = seen
        self.generation += 1


class Certificates:
    """Certificate, key and authority of a process, kept up to date."""

    def __init__(self, settings: ServiceSettings) -> None:
        """StartError when a file cannot be read."""
        self._files = WatchedFiles([settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file])

    @property
    def generation(self) -> int:
        """+1 with every renewal that was noticed."""
        return self._files.generation

    def current(self) -> Pem:
        """The newest that could be read."""
        certificate, key, authority = self._files.contents()
        return Pem(certificate=certificate, key=key, authority=authority)


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
        return configuration(pem) if found.generation != before and _usable(pem) else None

    first = found.current()
    if not _usable(first):
        raise StartError("the TLS certificate cannot be used with its key")
    return grpc.dynamic_ssl_server_credentials(configuration(first), renewed, certified)


def _usable(pem: Pem) -> bool:
    """Whether key and certificate belong together: gRPC itself would say so by refusing every handshake."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        certificate = x509.load_pem_x509_certificate(pem.certificate)
        key = serialization.load_pem_private_key(pem.key, password=None)
        form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        belongs = certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)
    except (ValueError, TypeError) as error:
        _log.warning("tls.unusable", error=str(error))
        return False
    if not belongs:
        _log.warning("tls.unusable", error="the key is not the certificate's")
    return belongs


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerNames:
    """Who a certificate says that its holder is."""

    #: SHA-256 of the certificate, base64url without padding.
    thumbprint: str
    #: Common name, DNS names and URIs (SPIFFE).
    names: frozenset[str]


def peer_names(certificate: bytes) -> PeerNames:
    """The names in a certificate (PEM) that a handshake has accepted."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    read = x509.load_pem_x509_certificate(certificate)
    names = {str(each.value) for each in read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)}
    try:
        others = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass
    else:
        names |= {*others.get_values_for_type(x509.DNSName)}
        names |= {*others.get_values_for_type(x509.UniformResourceIdentifier)}
    digest = base64.urlsafe_b64encode(read.fingerprint(hashes.SHA256())).rstrip(b"=").decode()
    return PeerNames(thumbprint=digest, names=frozenset(names - {""}))


def channel_credentials(found: Certificates) -> grpc.ChannelCredentials:
    """For a client: it shows its certificate and trusts the authority."""
    import grpc

    pem = found.current()
    return grpc.ssl_channel_credentials(pem.authority, pem.key, pem.certificate)


class TokenFile:
    """A bearer token in a file that somebody renews; none when no file is named."""

    def __init__(self, path: str) -> None:
        """StartError when the file cannot be read."""
        self._files = WatchedFiles([path]) if path else None

    def token(self) -> str | None:
        """The newest that could be read."""
        if self._files is None:
            return None
        (text,) = self._files.contents()
        return text.decode("ascii", "replace").strip() or None
