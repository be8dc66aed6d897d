"""The certificate that servers show over TLS, made by openssl as docs/operating.md makes one."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from .paths import WORK


@dataclass(frozen=True)
class Certificate:
    """A certificate that signs itself, with a key of ECDSA on P-256. The generator does not check it."""

    chain: Path
    key: Path

    @classmethod
    def make(cls) -> Certificate:
        made = cls(WORK / "server.pem", WORK / "server.key")
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost")
        files = ("-out", str(made.chain), "-keyout", str(made.key))
        names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        subprocess.run(["openssl", "req", "-x509", *curve, *files, *names], check=True, capture_output=True)
        return made
