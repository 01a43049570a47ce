"""Who the certificate of a caller says that it is. Loads no grpc."""

from __future__ import annotations

import base64
from dataclasses import dataclass

#: What RFC 8705 calls the SHA-256 of a certificate in a token's `cnf`.
THUMBPRINT = "x5t#S256"


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
