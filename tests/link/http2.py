"""HTTP/2 by hand: what gRPC's own client would never send."""

import contextlib
import socket
import ssl
import struct
import time

from fedlora.link.v1.link_pb2 import FromClient
from tests.link.raw import METHOD

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0, size: int | None = None) -> bytes:
    length = len(payload) if size is None else size
    return struct.pack(">I", length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(stream: int, *, flags: int = END_HEADERS, **more: str) -> bytes:
    """The head of a call, for instance of `Connect`."""
    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": METHOD,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **more,
    }
    packed = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(HEADERS, packed, flags=flags, stream=stream)


def said(message: FromClient, stream: int = 1) -> bytes:
    data = message.SerializeToString()
    return frame(DATA, b"\0" + struct.pack(">I", len(data)) + data, stream=stream)


def closed(connection: socket.socket, timeout: float = 10.0) -> bool:
    """Whether the server closes the connection in time, whatever it says before."""
    end = time.monotonic() + timeout
    try:
        while (left := end - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65536):
                return True
    except TimeoutError:
        return False
    except OSError:  # reset
        return True
    return False


def push(connection: socket.socket, *parts: bytes) -> None:
    """Sends until the server hangs up."""
    with contextlib.suppress(OSError):
        for part in parts:
            connection.sendall(part)


NO_WINDOW = PREFACE + frame(SETTINGS, struct.pack(">HI", 4, 0))
"""The other side may send no data at all, so no frame of ours: a call that waits to be told why it ends never ends."""


def stream_ended(connection: ssl.SSLSocket, timeout: float) -> bool:
    """Whether the server ends stream 1 in time."""
    end, data = time.monotonic() + timeout, b""
    while True:
        while len(data) >= 9 and len(data) >= 9 + (size := int.from_bytes(data[:3], "big")):
            kind, flags, stream = data[3], data[4], int.from_bytes(data[5:9], "big")
            data = data[9 + size :]
            if stream == 1 and (kind == RESET or (kind == HEADERS and flags & END_STREAM)):
                return True
        connection.settimeout(max(0.01, end - time.monotonic()))
        try:
            got = connection.recv(65536)
        except TimeoutError:
            return False
        if not got:
            return True
        data += got
