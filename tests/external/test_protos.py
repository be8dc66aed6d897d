"""The protos, compiled by the protoc that Debian 12 and Ubuntu 24.04 have (3.21), in four languages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from strangers import HERE, tools

PROTO = HERE.parents[1] / "proto"
FILES = ("admin", "audit", "key", "verify")

COMPILE_SECONDS = 300
"""What g++ and go may take on a machine under load."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMPILE_SECONDS,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def protoc(*options: str | Path) -> None:
    # By its path: there may be another one.
    assert run("/usr/bin/protoc", "--version") == "libprotoc 3.21.12\n"
    files: Sequence[Path] = [PROTO / f"keyward/v1/{file}.proto" for file in FILES]
    assert set(files) == set(PROTO.glob("keyward/v1/*.proto"))
    assert run("/usr/bin/protoc", "-I", PROTO, *options, *files) == "", "it warns"


def test_they_compile_in_cpp(tmp_path: Path) -> None:
    protoc(f"--cpp_out={tmp_path}", f"--grpc_out={tmp_path}", "--plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin")
    for file in FILES:
        run("g++", "-std=c++17", "-fsyntax-only", f"-I{tmp_path}", tmp_path / f"keyward/v1/{file}.pb.cc")
    assert "class KeyVerify " in (tmp_path / "keyward/v1/verify.grpc.pb.h").read_text()


def test_they_compile_in_java(tmp_path: Path) -> None:
    protoc(f"--java_out={tmp_path}")
    sources = sorted(tmp_path.rglob("*.java"))
    jar = "/usr/share/java/protobuf.jar"
    run("javac", "-nowarn", "-cp", jar, "-d", tmp_path / "classes", *sources)
    assert (tmp_path / "classes/keyward/v1/VerifyRequest.class").is_file(), "one file for each message"


def test_they_compile_in_python(tmp_path: Path) -> None:
    protoc(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}")
    assert (tmp_path / "keyward/v1/verify_pb2.pyi").is_file()
    script = (
        "from keyward.v1 import admin_pb2, audit_pb2, verify_pb2\n"
        "from google.protobuf.descriptor_pb2 import MethodOptions as Options\n"
        "calls = [c for f in (admin_pb2, audit_pb2, verify_pb2) for s in f.DESCRIPTOR.services_by_name.values()\n"
        "         for c in s.methods if c.GetOptions().idempotency_level == Options.NO_SIDE_EFFECTS]\n"
        "print(*sorted(c.name for c in calls))\n"
    )
    told = run(sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{script}")
    assert told == "Backup GetHead GetIssuer GetKey GetOwner GetTenant ListKeys ListTenants\n"


def test_they_compile_in_go(tmp_path: Path) -> None:
    plugins = [f"--plugin={tools() / name}" for name in ("protoc-gen-go", "protoc-gen-go-grpc")]
    protoc(*plugins, f"--go_out={tmp_path}", f"--go-grpc_out={tmp_path}")
    for file in ("go.mod", "go.sum"):
        shutil.copy(HERE / "protos" / file, tmp_path)
    run("go", "vet", "./...", cwd=tmp_path)
    assert "type KeyVerifyClient interface" in (tmp_path / "keyward/v1/verify_grpc.pb.go").read_text()
