"""What goes over the wire, as far as a load needs it: protobuf fields and gRPC's prefix."""

from __future__ import annotations

def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def framed(message: bytes) -> bytes:
    """A gRPC message with its prefix."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def verify_request(secret: str, scope: str | None) -> bytes:
    return field(1, secret.encode()) + (field(3, scope.encode()) if scope else b"")


def create_request(display_name: str, owner: str, scopes: list[str], expiry: int) -> bytes:
    """A CreateKeyRequest without an id: the server chooses one that is ordered by time."""
    strings = [field(3, display_name.encode()), field(5, owner.encode()), *(field(7, scope.encode()) for scope in scopes)]
    return b"".join(strings) + field(13, varint(1 << 3) + varint(expiry))
