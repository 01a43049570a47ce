"""An authority and certificates for tests of TLS; made on the spot, so that no key lies in the repository."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

#: How long a certificate lasts, and how long ago it began: the machine's clock may have been stepped.
LIFE = datetime.timedelta(hours=1)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


class Authority:
    """Signs certificates for loopback."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        builder = self._builder(self._name, self._key)
        ends = x509.BasicConstraints(ca=True, path_length=0)
        self._certificate = builder.add_extension(ends, critical=True).sign(self._key, hashes.SHA256())

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - LIFE)
            .not_valid_after(now + LIFE)
        )

    def write(self, folder: Path, name: str = "callmesh", host: str = "") -> dict[str, str]:
        """Writes tls.crt, tls.key and ca.crt of a new certificate into `folder`, one after another as a
        careless renewal would; returns them as settings. It is for loopback, or for `host` alone.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        loopback = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        names = x509.SubjectAlternativeName([x509.DNSName(host)] if host else loopback)
        builder = self._builder(_name(name), key).add_extension(names, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        parts = {
            "ca.crt": self._certificate.public_bytes(pem),
            "tls.crt": certificate.public_bytes(pem),
            "tls.key": secret,
        }
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in parts.items():
            (folder / file).write_bytes(content)
        return {
            "tls_ca_file": str(folder / "ca.crt"),
            "tls_cert_file": str(folder / "tls.crt"),
            "tls_key_file": str(folder / "tls.key"),
        }
