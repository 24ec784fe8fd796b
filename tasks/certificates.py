"""TLS certificates for programs of one user: a new authority signs one of them, and its key is forgotten."""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

LIFETIME = timedelta(days=3650)
AUTHORITY, CERTIFICATE, KEY = "authority.pem", "certificate.pem", "key.pem"
"""The files that `make` writes: for mutual TLS, where each side has the key, and nobody else has a certificate."""


def make(folder: Path) -> None:
    """Write `AUTHORITY`, `CERTIFICATE` and `KEY` to an empty folder, readable by their owner alone.

    The certificate is for 127.0.0.1 and localhost, for servers and clients alike. The authority's key is not stored, so
    nobody can make another certificate that it has signed.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    started = datetime.now(UTC) - timedelta(days=1)  # a clock that is set back does not make it invalid

    def builder(name: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        issuer, subject = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in ("authority", name))
        serial = x509.random_serial_number()
        return x509.CertificateBuilder(issuer, subject, public, serial, started, started + LIFETIME)

    signs = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    authority = (
        builder("authority", authority_key.public_key())
        .add_extension(x509.BasicConstraints(True, 0), True)
        .add_extension(signs, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), False)
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        builder("chronomerge", key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.ExtendedKeyUsage(uses), False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), False)
    )
    pem = serialization.Encoding.PEM
    for name, content in {
        AUTHORITY: authority.sign(authority_key, hashes.SHA256()).public_bytes(pem),
        CERTIFICATE: certificate.sign(authority_key, hashes.SHA256()).public_bytes(pem),
        KEY: key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    }.items():
        with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
