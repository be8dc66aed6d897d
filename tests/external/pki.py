"""An authority and its certificates, made by openssl as docs/operating.md makes them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True)
class Pki:
    """A directory of pairs: NAME.pem and NAME.key."""

    path: Path

    @classmethod
    def make(cls, path: Path) -> Pki:
        path.mkdir()
        pki = cls(path)
        pki._pair("ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        pki.issue("server", "DNS:localhost,IP:127.0.0.1", "serverAuth")
        pki.issue("caller", "URI:spiffe://example.org/billing", "clientAuth")
        return pki

    def issue(self, name: str, names: str, usage: str) -> None:
        self._pair(
            name,
            *("-CA", self.file("ca.pem"), "-CAkey", self.file("ca.key"), "-addext", "basicConstraints=critical,CA:FALSE"),
            *("-addext", f"subjectAltName={names}", "-addext", f"extendedKeyUsage={usage}"),
        )

    def file(self, name: str) -> str:
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def settings(self, demand: bool = True) -> dict[str, str]:
        """Settings of a server that uses them."""
        files = {"tls_certificate_file": self.file("server.pem"), "tls_key_file": self.file("server.key")}
        return files | ({"tls_client_ca_file": self.file("ca.pem")} if demand else {})

    def channel(self, target: str, shows: str | None = "caller") -> grpc.Channel:
        """A channel of its own that trusts the authority, and shows a certificate or none."""
        key, chain = (self.read(f"{shows}.key"), self.read(f"{shows}.pem")) if shows else (None, None)
        credentials = grpc.ssl_channel_credentials(self.read("ca.pem"), key, chain)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        return grpc.secure_channel(target, credentials, options)

    def serial(self, name: str) -> int:
        return serial_of(self.read(name))

    def _pair(self, name: str, *options: str) -> None:
        # The key goes into place after the certificate: in between they do not belong together.
        made = [self.path / f"{name}.{kind}.new" for kind in ("pem", "key")]
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", f"/CN={name}"]
        files = ["-out", str(made[0]), "-keyout", str(made[1])]
        subprocess.run(["openssl", "req", "-x509", *curve, *files, *options], check=True, capture_output=True)
        for file in made:
            file.rename(file.with_suffix(""))


def serial_of(pem: bytes) -> int:
    """The serial number of a certificate."""
    told = subprocess.run(["openssl", "x509", "-noout", "-serial"], input=pem, check=True, capture_output=True)
    return int(told.stdout.decode().strip().removeprefix("serial="), 16)
