"""The certificate's files: what is wrong with them is said by key, and new ones are taken up whole or not at all."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.check import environment_faults
from gateway.config import Config
from gateway.config_server import Server, Tls
from gateway.doors.certificates import Certificates, Unusable, context_of
from gateway.doors.x509 import certificates_in
from gateway.sources import ConfigError, load

UNLIMITED = -1


def tls_of(pem: Any, **changed: Any) -> Tls:
    named = {"certificate": pem.certificate, "key": pem.key} | changed
    return Tls(**{key: value if key == "minimum" else str(value) for key, value in named.items()})


def encrypted(pem: Any) -> Path:
    key = serialization.load_pem_private_key(pem.key.read_bytes(), None)
    path: Path = pem.folder / "encrypted.key"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    return path


def file_of(pem: Any, text: str) -> Path:
    path: Path = pem.folder / "file.pem"
    path.write_text(text)
    return path


BROKEN_CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
BROKEN_KEY = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"

FAULTS: dict[str, tuple[Any, str]] = {
    "no certificate": (lambda pem: {"certificate": "/nowhere"}, "server.tls.certificate: /nowhere: cannot be read: No"),
    "no key": (lambda pem: {"key": "/nowhere"}, "server.tls.key: /nowhere: cannot be read: No such file"),
    "a folder": (lambda pem: {"key": pem.folder}, "server.tls.key: .*: cannot be read: Is a directory"),
    "no path": (lambda pem: {"key": "a\0b"}, "server.tls.key: .*: cannot be read: embedded null"),
    "no authority": (lambda pem: {"client_ca": "/nowhere"}, "server.tls.client_ca: /nowhere: cannot be read"),
    "another's key": (lambda pem: {"key": pem.issue("other")[1]}, "server.tls.key: .*: is not the key of server.tls.c"),
    "an encrypted key": (lambda pem: {"key": encrypted(pem)}, "server.tls.key: .*: is encrypted, .* openssl pkey"),
    "the two exchanged": (lambda pem: {"certificate": pem.key}, "server.tls.certificate: .*: holds no certificate in"),
    "a certificate as key": (lambda pem: {"key": pem.certificate}, "server.tls.key: .*: holds no private key in PEM"),
    "half a certificate": (
        lambda pem: {"certificate": file_of(pem, BROKEN_CERTIFICATE)},
        "server.tls.certificate: .*: cannot be used: not readable as PEM",
    ),
    "half a key": (lambda pem: {"key": file_of(pem, BROKEN_KEY)}, "server.tls.certificate: .*, with key .*: cannot be"),
    "half an authority": (
        lambda pem: {"client_ca": file_of(pem, BROKEN_CERTIFICATE)},
        "server.tls.client_ca: .*: cannot be used",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_used_is_told_by_its_key(name: str, own_pem: Any) -> None:
    change, told = FAULTS[name]
    tls = tls_of(own_pem, **change(own_pem))
    with pytest.raises(Unusable, match=told) as caught:
        context_of(tls)
    assert tuple(environment_faults(Config(server=Server(tls=tls)), UNLIMITED)) == caught.value.faults


def doubts(tls: Tls, now: float) -> list[str]:
    return list(environment_faults(Config(server=Server(tls=tls)), UNLIMITED, lambda: now))


def written(pem: Any, name: str, *issued: trustme.LeafCert) -> Path:
    path: Path = pem.folder / name
    path.write_bytes(b"".join(each.bytes() for one in issued for each in one.cert_chain_pems))
    return path


def test_a_certificate_that_has_expired_is_a_fault_and_one_that_does_not_hold_yet(own_pem: Any) -> None:
    begins, ends = datetime(2031, 2, 3, 4, 5, tzinfo=UTC), datetime(2032, 1, 1, tzinfo=UTC)
    issued = own_pem.authority.issue_cert("localhost", not_before=begins, not_after=ends)
    chain = written(own_pem, "dated.pem", issued)
    issued.private_key_pem.write_to_path(str(own_pem.folder / "dated.key"))
    tls = tls_of(own_pem, certificate=chain, key=own_pem.folder / "dated.key")
    assert doubts(tls, begins.timestamp() + 1) == []
    (early,) = doubts(tls, begins.timestamp() - 1)
    assert early.startswith(f"server.tls.certificate: {chain}: certificate 1 of 1 holds from 2031-02-03 04:05 UTC on;")
    assert doubts(tls, ends.timestamp() - 1) == []
    (late,) = doubts(tls, ends.timestamp() + 1)
    assert late == f"server.tls.certificate: {chain}: certificate 1 of 1 has expired on 2032-01-01 00:00 UTC; renew it"


def test_whose_authority_is_none_is_told(own_pem: Any) -> None:
    now = datetime.now(UTC).timestamp()
    between = trustme.CA(parent_cert=own_pem.authority)
    assert doubts(tls_of(own_pem, client_ca=own_pem.ca), now) == []
    both = own_pem.folder / "both.pem"
    both.write_bytes(own_pem.ca.read_bytes() + between.cert_pem.bytes())
    assert doubts(tls_of(own_pem, client_ca=both), now) == []
    leaf = written(own_pem, "leaf.pem", own_pem.authority.issue_cert("caller"))
    both.write_bytes(own_pem.ca.read_bytes() + leaf.read_bytes())
    (told,) = doubts(tls_of(own_pem, client_ca=both), now)
    assert told.startswith(f"server.tls.client_ca: {both}: certificate 2 of 2 is no authority's; give that of")
    expired = doubts(tls_of(own_pem, client_ca=own_pem.ca), datetime(3001, 1, 1, tzinfo=UTC).timestamp())
    assert [line.partition(" has expired")[0] for line in expired] == [
        f"server.tls.certificate: {own_pem.certificate}: certificate 1 of 1",
        f"server.tls.client_ca: {own_pem.ca}: certificate 1 of 1",
    ]


def test_a_caller_of_its_own_is_its_authority(own_pem: Any) -> None:
    """OpenSSL trusts a certificate that is signed by itself, whatever it may sign."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "me")])
    begun = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    dated = begun.serial_number(1).not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2999, 1, 1))
    made = dated.add_extension(x509.BasicConstraints(ca=False, path_length=None), True).sign(key, hashes.SHA256())
    (read,) = certificates_in(made.public_bytes(serialization.Encoding.PEM))
    assert read.signs


@pytest.mark.parametrize("year", [1999, 2049, 2050, 9999])
def test_what_a_certificate_says_of_itself_is_what_others_read_of_it(year: int, own_pem: Any) -> None:
    """Years of two digits and of four."""
    ends = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)
    issued = own_pem.authority.issue_cert("a", not_before=datetime(1980, 1, 1, tzinfo=UTC), not_after=ends)
    pem = issued.cert_chain_pems[0].bytes()
    theirs = x509.load_pem_x509_certificate(pem)
    (ours,) = certificates_in(b"what is before\n" + pem)
    assert (ours.begins, ours.ends) == (theirs.not_valid_before_utc.timestamp(), theirs.not_valid_after_utc.timestamp())
    assert not ours.signs
    der = theirs.public_bytes(serialization.Encoding.DER)
    for cut in range(len(der)):
        with pytest.raises(ValueError, match=r"read|unpack"):
            certificates_in(ssl.DER_cert_to_PEM_cert(der[:cut]).encode())


def test_all_that_is_wrong_comes_in_one_list(own_pem: Any) -> None:
    with pytest.raises(Unusable) as caught:
        context_of(Tls("/a", "/b", "/c"))
    assert [fault.partition(": ")[0] for fault in caught.value.faults] == [
        "server.tls.certificate",
        "server.tls.key",
        "server.tls.client_ca",
    ]


def test_a_key_beside_its_certificate_in_one_file(own_pem: Any) -> None:
    own_pem.certificate.write_bytes(own_pem.key.read_bytes() + own_pem.certificate.read_bytes())
    assert context_of(tls_of(own_pem, key=own_pem.certificate))


def test_what_a_context_allows(pem: Any) -> None:
    context = context_of(tls_of(pem))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.verify_mode is ssl.CERT_NONE
    strict = context_of(tls_of(pem, minimum="1.3", client_ca=pem.ca))
    assert strict.minimum_version is ssl.TLSVersion.TLSv1_3
    assert strict.verify_mode is ssl.CERT_REQUIRED


# -- as it is written ---------------------------------------------------------------------------------


WRITTEN = '[backends.b]\nhttp = ["http://a"]\n[server.tls]\n'


def test_files_are_named_from_the_folder_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "tailrace.toml"
    path.write_text(WRITTEN + 'certificate = "tls/chain.pem"\nkey = "/etc/key.pem"\n')
    tls = load(str(path), {}).server.tls
    assert tls == Tls(str(tmp_path / "tls" / "chain.pem"), "/etc/key.pem")
    environ = {"TAILRACE_SERVER__TLS__CERTIFICATE": "chain.pem", "TAILRACE_SERVER__TLS__KEY": "/k"}
    assert load(None, environ, ["http://a"]).server.tls == Tls("chain.pem", "/k")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('certificate = "a"', "server.tls.key: is required"),
        ('key = "a"', "server.tls.certificate: is required"),
        ('certificate = ""\nkey = "a"', "server.tls.certificate: must name a file in PEM form"),
        ('certificate = "a"\nkey = "b"\nminimum = 1.2', 'server.tls.minimum: must be in quotes: "1.2"'),
        ('certificate = "a"\nkey = "b"\nminimum = "1.1"', "server.tls.minimum: '1.1' is not one of 1.2, 1.3"),
        ('certificate = "a"\nkey = "b"\n[server]\nhttp = "unix:/s"', "server.tls: is for a network"),
    ],
)
def test_what_is_wrong_in_the_file(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "tailrace.toml"
    head, _, rest = text.partition("[server]\n")
    path.write_text(WRITTEN.replace("[server.tls]", f"[server]\n{rest}\n[server.tls]") + head)
    with pytest.raises(ConfigError) as caught:
        load(str(path), {})
    assert [fault[: len(told)] for fault in caught.value.faults] == [told]


# -- new ones -----------------------------------------------------------------------------------------


def test_new_files_make_a_new_context_and_the_same_ones_none(own_pem: Any) -> None:
    certificates = Certificates(tls_of(own_pem))
    first = certificates.context
    certificates.renew()
    assert certificates.context is first
    own_pem.issue("server")
    certificates.renew()
    assert certificates.context is not first
    assert (certificates.renewals, certificates.fault) == (1, "")
    certificates.renew()
    assert certificates.renewals == 1


def test_the_end_of_the_certificate_in_use_is_told(own_pem: Any) -> None:
    ends = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
    made = own_pem.authority.issue_cert("localhost", not_after=ends)
    own_pem.certificate.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
    made.private_key_pem.write_to_path(str(own_pem.key))
    certificates = Certificates(tls_of(own_pem))
    assert certificates.ends == ends.timestamp()
    own_pem.certificate.write_text("nothing")
    certificates.renew()
    assert certificates.ends == ends.timestamp()
    own_pem.issue("server")
    certificates.renew()
    assert certificates.ends != ends.timestamp()


def test_files_that_cannot_be_used_change_nothing_until_they_can(
    own_pem: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    certificates = Certificates(tls_of(own_pem))
    first, old_key = certificates.context, own_pem.key.read_bytes()
    own_pem.issue("server")
    new_key = own_pem.key.read_bytes()
    own_pem.key.write_bytes(old_key)  # of two files one is written first
    for _ in range(3):
        certificates.renew()
    assert certificates.context is first
    assert "is not the key of" in certificates.fault
    assert capsys.readouterr().out.count("new certificate is not used") == 1
    own_pem.key.unlink()
    certificates.renew()
    assert certificates.context is first
    assert "cannot be read" in certificates.fault
    own_pem.key.write_bytes(new_key)
    certificates.renew()
    assert certificates.context is not first
    assert (certificates.renewals, certificates.fault) == (1, "")


def test_old_files_that_come_back_are_well_again(own_pem: Any) -> None:
    certificates = Certificates(tls_of(own_pem))
    kept = own_pem.certificate.read_bytes()
    own_pem.certificate.write_text("nothing")
    certificates.renew()
    assert certificates.fault
    own_pem.certificate.write_bytes(kept)
    certificates.renew()
    assert certificates.fault == ""


def test_a_new_authority_is_the_only_one(own_pem: Any) -> None:
    certificates = Certificates(tls_of(own_pem, client_ca=own_pem.ca))
    trustme.CA().cert_pem.write_to_path(str(own_pem.ca))
    certificates.renew()
    assert len(certificates.context.get_ca_certs()) == 1


async def test_it_looks_again_and_again(own_pem: Any) -> None:
    certificates = Certificates(tls_of(own_pem))
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise asyncio.CancelledError
        own_pem.issue("server")

    with pytest.raises(asyncio.CancelledError):
        await certificates.run(5.0, sleep)
    assert (waits, certificates.renewals) == ([5.0] * 3, 2)
