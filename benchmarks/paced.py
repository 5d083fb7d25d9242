"""At a given rate: an open-loop client for answer times, without coordinated omission.

Usage: python -m benchmarks.paced JSON

Requests leave at times drawn beforehand (exponential gaps from a fixed seed, so every contestant
gets the same arrivals), whether or not earlier ones were answered, and an answer time counts from
the moment at which the request was due. So a stall shows in every request it held up, a stall of
this client included; how late it was itself is reported beside.

Cheap enough to share a small machine: HTTP/2 frames are made once, only stream numbers are written
in; of answers only frame headers are read. A gRPC answer with a message is OK (servers send none
with an error); a server's flow control is obeyed. Over HTTP it speaks HTTP/1.1, one request at once
on each of several connections.

The argument: host, port, rate (requests a second), requests, spans, grpc, tls, connections, pid
(whose CPU time is taken), patience (seconds to wait for the last answers), lead (seconds before the
first request is due). The answer is JSON:
seconds, cpu_seconds and of that process; answered, failed, unanswered; quantiles in milliseconds.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import random
import select
import socket
import ssl
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from benchmarks import bodies, process

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
FRAME = 16_384
WINDOW = 65_535
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
READ = 262_144


@dataclasses.dataclass(frozen=True)
class Task:
    """What to send where; see the top of the file."""

    host: str
    port: int
    rate: float
    requests: int
    spans: int
    grpc: bool = True
    tls: bool = False
    connections: int = 4
    pid: int = 0
    patience: float = 10.0
    lead: float = 0.2
    attribute_bytes: int = 0


class BrokenError(ConnectionError):
    """The server closed the connection or said goodbye."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field without indexing, new name (RFC 7541, 6.2.2); both under 127 bytes."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def connect(task: Task) -> socket.socket:
    sock = socket.create_connection((task.host, task.port), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if task.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the certificate is not what is measured
        context.set_alpn_protocols(["h2"] if task.grpc else ["http/1.1"])
        sock = context.wrap_socket(sock, server_hostname="localhost")
    sock.setblocking(False)
    return sock


class Socket:
    """Bytes in and out of a socket that never blocks.

    Its subclasses have: ``idle()``, whether another request may start now; ``start(number)``;
    ``pump()``, which writes what can be written and is True when something is left;
    ``receive()``, which reads what is there and returns the numbers of the requests that ended,
    each with whether it succeeded.
    """

    def __init__(self, task: Task) -> None:
        self.sock = connect(task)
        self._out = bytearray()

    def write(self, data: bytes) -> None:
        self._out += data

    def flush(self) -> bool:
        """Send; True when something is left."""
        while self._out:
            try:
                sent = self.sock.send(self._out)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return True
            del self._out[:sent]
        return False

    def read(self) -> bytes:
        parts = []
        while True:
            try:
                part = self.sock.recv(READ)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            if not part:
                raise BrokenError("closed by the server")
            parts.append(part)
            if len(part) < READ and not isinstance(self.sock, ssl.SSLSocket):
                break
        return b"".join(parts)


class Http2(Socket):
    """gRPC calls of one method with one request, on one connection."""

    def __init__(self, task: Task, message: bytes) -> None:
        super().__init__(task)
        scheme = "https" if task.tls else "http"
        # :method POST and :scheme are in the static table (RFC 7541, appendix A).
        block = (
            b"\x83"
            + (b"\x87" if scheme == "https" else b"\x86")
            + literal(":path", bodies.GRPC_PATH)
            + literal(":authority", f"{task.host}:{task.port}")
            + literal("content-type", "application/grpc")
            + literal("te", "trailers")
        )
        self._headers = block
        self._message = message
        self._streams: dict[int, int] = {}
        self._answers: set[int] = set()
        self._next = 1
        self._limit = 100
        self._window = WINDOW
        self._initial = WINDOW
        self._sending: deque[list[int]] = deque()  # stream, offset, window
        self._in = bytearray()
        self.write(
            PREFACE
            + frame(SETTINGS, 0, 0, struct.pack(">HIHI", 2, 0, 4, 2**20))
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1 - WINDOW))
        )
        self.flush()

    def idle(self) -> bool:
        return len(self._streams) < self._limit

    def start(self, number: int) -> None:
        stream = self._next
        self._next += 2
        self._streams[stream] = number
        self.write(frame(HEADERS, END_HEADERS, stream, self._headers))
        size = len(self._message)
        if size <= FRAME and not self._sending and size <= min(self._window, self._initial):
            self._window -= size
            self.write(frame(DATA, END_STREAM, stream, self._message))
        else:
            self._sending.append([stream, 0, self._initial])

    def pump(self) -> bool:
        size = len(self._message)
        for _ in range(len(self._sending)):
            job = self._sending[0]
            stream, offset, window = job
            while offset < size and (room := min(FRAME, self._window, window, size - offset)) > 0:
                last = END_STREAM if offset + room == size else 0
                self.write(frame(DATA, last, stream, self._message[offset : offset + room]))
                offset, window = offset + room, window - room
                self._window -= room
            job[1], job[2] = offset, window
            if offset == size:
                self._sending.popleft()
            elif self._window <= 0:
                break
            else:  # this stream's window is full: others may have room
                self._sending.rotate(-1)
        return self.flush()

    def receive(self) -> list[tuple[int, bool]]:
        buffer = self._in
        buffer += self.read()
        ended: list[tuple[int, bool]] = []
        start, size = 0, len(buffer)
        while size - start >= 9:
            length = int.from_bytes(buffer[start : start + 3], "big")
            end = start + 9 + length
            if end > size:
                break
            kind, flags = buffer[start + 3], buffer[start + 4]
            stream = int.from_bytes(buffer[start + 5 : start + 9], "big") & 0x7FFFFFFF
            if kind in {DATA, HEADERS}:
                if kind == DATA and length >= 5:
                    self._answers.add(stream)
                if flags & END_STREAM:
                    self._end(stream, ended)
            else:
                self._control(kind, flags, stream, bytes(buffer[start + 9 : end]), ended)
            start = end
        del buffer[:start]
        return ended

    def _end(self, stream: int, ended: list[tuple[int, bool]]) -> None:
        number = self._streams.pop(stream, None)
        if number is not None:
            ended.append((number, stream in self._answers))
            self._answers.discard(stream)
            if self._sending:  # answered before it was sent in full
                self._sending = deque(job for job in self._sending if job[0] != stream)

    def _control(
        self, kind: int, flags: int, stream: int, payload: bytes, ended: list[tuple[int, bool]]
    ) -> None:
        if kind == WINDOW_UPDATE:
            increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
            if stream == 0:
                self._window += increment
            for job in self._sending:
                if job[0] == stream:
                    job[2] += increment
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack_from(">HI", payload, at)
                if name == 3:
                    # A server may still count a stream whose end it has just sent, and refuse
                    # another (grpc-core does); clients of gRPC send those again, this one does not.
                    self._limit = max(1, value * 3 // 4)
                elif name == 4:
                    for job in self._sending:
                        job[2] += value - self._initial
                    self._initial = value
            self.write(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.write(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            self._answers.discard(stream)
            self._end(stream, ended)
        elif kind == GOAWAY:
            raise BrokenError(f"GOAWAY, error {int.from_bytes(payload[4:8], 'big')}")


class Http1(Socket):
    """POSTs of one request, one at once."""

    def __init__(self, task: Task, message: bytes) -> None:
        super().__init__(task)
        self._request = (
            f"POST {bodies.HTTP_PATH} HTTP/1.1\r\nHost: {task.host}:{task.port}\r\n"
            "Content-Type: application/x-protobuf\r\n"
            f"Content-Length: {len(message)}\r\n\r\n"
        ).encode() + message
        self._number: int | None = None
        self._in = b""

    def idle(self) -> bool:
        return self._number is None

    def start(self, number: int) -> None:
        self._number = number
        self.write(self._request)

    def pump(self) -> bool:
        return self.flush()

    def receive(self) -> list[tuple[int, bool]]:
        self._in += self.read()
        head, found, body = self._in.partition(b"\r\n\r\n")
        if not found or self._number is None:
            return []
        lines = head.lower().split(b"\r\n")
        if b"transfer-encoding: chunked" in lines:
            if not body.endswith(b"0\r\n\r\n"):
                return []
        else:
            lengths = [line for line in lines if line.startswith(b"content-length:")]
            if len(body) < int(lengths[0].partition(b":")[2] if lengths else 0):
                return []
        number, self._number, self._in = self._number, None, b""
        return [(number, head.split(b" ", 2)[1] == b"200")]


class Client:
    """Sends on schedule over several connections, and keeps what the answers say."""

    def __init__(self, task: Task) -> None:
        payload = bodies.trace_request(task.spans, task.attribute_bytes)
        message = bodies.grpc_message(payload) if task.grpc else payload
        kind = Http2 if task.grpc else Http1
        self.task = task
        self.times: list[float] = []
        self.late: list[float] = []
        self.failed = 0
        self.broken = ""
        self.due = arrivals(task)
        self.deadline = self.due[-1] + task.patience
        self._connections: list[Http2 | Http1] = [
            kind(task, message) for _ in range(task.connections)
        ]
        self._by_socket = {each.sock: each for each in self._connections}
        self._writing: set[socket.socket] = set()
        self._under_way: set[int] = set()
        self._next = 0
        self._turn = 0
        self._all_busy = False

    def under_way(self) -> bool:
        unfinished = self._next < self.task.requests or bool(self._under_way)
        return unfinished and bool(self._connections)

    def send_due(self, now: float) -> None:
        """Start what is due, on the connections in turn, as long as one of them is free."""
        was_busy, self._all_busy = self._all_busy, False
        touched = set()
        while self._next < self.task.requests and self.due[self._next] <= now:
            for _ in self._connections:
                self._turn = (self._turn + 1) % len(self._connections)
                connection = self._connections[self._turn]
                if connection.idle():
                    break
            else:
                self._all_busy = True  # it waits, and its clock runs
                break
            connection.start(self._next)
            touched.add(connection)
            self._under_way.add(self._next)
            if not was_busy:  # else the server held it up, not this client
                self.late.append(now - self.due[self._next])
            self._next += 1
        for connection in touched:
            self._pump(connection)

    def wait(self, now: Callable[[], float]) -> None:
        """Until something is due or answered; takes the answers."""
        at = now()
        wait = self.deadline - at
        # If none is free, an answer is what frees one.
        if self._next < self.task.requests and not self._all_busy:
            wait = self.due[self._next] - at
        readable, writable, _ = select.select(
            list(self._by_socket), list(self._writing), [], max(wait, 0)
        )
        done = now()
        for sock in {*readable, *writable}:
            connection = self._by_socket[sock]
            try:
                ended = connection.receive() if sock in readable else []
                self._pump(connection)
            except OSError as error:
                self._drop(connection, error)
                continue
            for number, fine in ended:
                self._under_way.discard(number)
                if fine:
                    self.times.append(done - self.due[number])
                else:
                    self.failed += 1

    def close(self) -> None:
        for sock in self._by_socket:
            sock.close()

    def _pump(self, connection: Http2 | Http1) -> None:
        waits = connection.pump()
        (self._writing.add if waits else self._writing.discard)(connection.sock)

    def _drop(self, connection: Http2 | Http1, error: OSError) -> None:
        self.broken = str(error) or type(error).__name__
        connection.sock.close()
        del self._by_socket[connection.sock]
        self._connections.remove(connection)
        self._writing.discard(connection.sock)


def arrivals(task: Task) -> list[float]:
    """When each request is due, in seconds; the same for every contestant."""
    chance = random.Random(task.requests)
    at = task.lead
    due = []
    for _ in range(task.requests):
        due.append(at)
        at += chance.expovariate(task.rate)
    return due


def run(task: Task) -> dict[str, Any]:
    """Send, wait for the answers, and say how it went.

    Raises:
        OSError: a connection could not be made.
    """
    client = Client(task)
    began = time.perf_counter()

    def now() -> float:
        return time.perf_counter() - began

    def cpu() -> float:
        return process.cpu_seconds(task.pid) if task.pid else 0.0

    while now() < client.due[0]:
        client.wait(now)  # settings are exchanged
    first, cpu_before, own_before = now(), cpu(), time.process_time()
    while client.under_way() and now() < client.deadline:
        client.send_due(now())
        client.wait(now)
    finished, cpu_after = now(), cpu()
    client.close()
    return {
        "seconds": finished - first,
        "cpu_seconds": cpu_after - cpu_before,
        "client_cpu_seconds": time.process_time() - own_before,
        "answered": len(client.times),
        "failed": client.failed,
        "unanswered": task.requests - len(client.times) - client.failed,
        "broken": client.broken,
        "answer_ms": quantiles(client.times),
        "late_ms": quantiles(client.late),
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Of a list of times, in milliseconds; empty for none."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {
        name: 1000 * ordered[min(last, int(share * len(ordered)))]
        for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0))
    }


if __name__ == "__main__":
    gc.disable()  # a pause of this client would be measured as an answer time
    print(json.dumps(run(Task(**json.loads(sys.argv[1])))))
