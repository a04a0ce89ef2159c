"""The own cluster's TLS credentials: made for this session, kept in memory.

`ssl` reads them from files only: Dask writes them, for that moment, into a temporary folder that
nobody else may enter.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from distributed.security import Security

VALID = timedelta(days=365)
_BEFORE = timedelta(days=1)  # clocks are set back now and then


def temporary() -> Security:
    """A key, and a certificate that it has signed itself: who has it belongs to the cluster.

    As ``Security.temporary()`` does it, but with a key on the curve P-256 in place of RSA: made in
    0.1 ms and not in 30 to 100, and each connection is opened faster.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "at_once_dask")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + VALID)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    public = certificate.public_bytes(pem).decode()
    return Security(
        require_encryption=True,
        tls_ca_file=public,
        **{f"tls_{role}_key": secret for role in ("client", "scheduler", "worker")},
        **{f"tls_{role}_cert": public for role in ("client", "scheduler", "worker")},
    )
