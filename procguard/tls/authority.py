"""The manager's own CA and the certificates it signs. Owns the files of one directory; knows no sockets.

Only the manager's user can read ca.key and server.key (0600). The CA signs for this manager only.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from procguard.errors import ProcGuardError
from remote_agent.system import paths

log = logging.getLogger(__name__)

CA_LIFE = timedelta(days=20 * 365)
SERVER_LIFE = timedelta(days=825)
RENEW_BEFORE = timedelta(days=400)  # hosts whose clocks are wrong by months still find it valid
BEGINS = datetime(2020, 1, 1, tzinfo=timezone.utc)  # also for a clock that is years late


class Authority:
    """The CA in `directory`, created if there is none."""

    def __init__(self, directory: str, now: datetime) -> None:
        self._directory = directory
        self.ca_file = os.path.join(directory, "ca.pem")
        self._ca_key_file = os.path.join(directory, "ca.key")
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            if not os.path.exists(self.ca_file):
                self._make_ca(now)
            with open(self.ca_file, encoding="ascii") as file:
                self.ca_pem = file.read()
        except (OSError, UnicodeDecodeError) as exc:
            raise ProcGuardError(
                f"web.tls: cannot keep the manager's CA in {directory} ({exc})",
                "check the directory's owner and rights",
            ) from exc

    def server(self, names: list[str], now: datetime) -> tuple[str, str, bool]:
        """(certificate's file, key's file, whether they were created by this call). The certificate is valid long
        enough and for `names`."""
        cert_file, key_file = (os.path.join(self._directory, name) for name in ("server.pem", "server.key"))
        if self._still_good(cert_file, key_file, names, now):
            return cert_file, key_file, False
        ca, ca_key = self._load_ca()
        if ca.not_valid_after_utc <= now:
            raise ProcGuardError(
                f"web.tls: the manager's CA {self.ca_file} expired at {ca.not_valid_after_utc:%Y-%m-%d}",
                f"remove {self._directory}, start the manager again, and deploy again: agents get the new one over SSH",
                code="bad_certificate",
            )
        key, certificate = _issue(ca, ca_key, names, now)
        paths.write_atomic(key_file, _key_pem(key), durable=True)
        paths.write_atomic(cert_file, _pem(certificate) + _pem(ca), 0o644, durable=True)
        log.info("certificate made until=%s names=%s", certificate.not_valid_after_utc.date(), ",".join(names))
        return cert_file, key_file, True

    def _still_good(self, cert_file: str, key_file: str, names: list[str], now: datetime) -> bool:

        try:
            with open(cert_file, "rb") as file:
                certificate = x509.load_pem_x509_certificate(file.read())
            os.stat(key_file)
            ca = x509.load_pem_x509_certificate(self.ca_pem.encode())
            certificate.verify_directly_issued_by(ca)
        except (OSError, ValueError, TypeError, InvalidSignature):
            return False  # missing, damaged, or signed by a previous CA
        ends = certificate.not_valid_after_utc
        lasts = ends - now > RENEW_BEFORE or (ends >= ca.not_valid_after_utc and ends > now)
        return lasts and set(names) <= _names_of(certificate)

    def _load_ca(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:

        try:
            with open(self._ca_key_file, "rb") as file:
                key = load_pem_private_key(file.read(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise TypeError("not a key of this CA")
            return x509.load_pem_x509_certificate(self.ca_pem.encode()), key
        except (OSError, ValueError, TypeError) as exc:
            raise ProcGuardError(
                f"web.tls: the manager's CA in {self._directory} cannot be used ({exc})",
                f"restore {self._ca_key_file} and ca.pem from a backup, or remove both and deploy again",
                code="bad_certificate",
            ) from exc

    def _make_ca(self, now: datetime) -> None:

        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"ProcGuard CA of {socket.gethostname()[:40]}")
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        certificate = (
            _builder(name, name, key.public_key(), now + CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        paths.write_atomic(self._ca_key_file, _key_pem(key), durable=True)
        paths.write_atomic(self.ca_file, _pem(certificate), 0o644, durable=True)
        log.info("a CA was made directory=%s", self._directory)


def _issue(
    ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, names: list[str], now: datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:

    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = [_alternative(name) for name in names]
    certificate = (
        _builder(
            _name("ProcGuard manager"), ca.subject, key.public_key(), min(now + SERVER_LIFE, ca.not_valid_after_utc)
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return key, certificate


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGINS)
        .not_valid_after(until)
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(text: str) -> x509.Name:

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _names_of(certificate: x509.Certificate) -> set[str]:

    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(address) for address in found.get_values_for_type(x509.IPAddress)}
    return addresses | set(found.get_values_for_type(x509.DNSName))


def _pem(certificate: x509.Certificate) -> bytes:

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
