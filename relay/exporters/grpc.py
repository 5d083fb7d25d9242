"""OTLP/gRPC exporter: one channel per destination, shared by its signals.

The channel's own retries, proxy and hidden waiting are off: a call is only made on a channel that
is ready, and whatever goes wrong is told at once, so that the pipeline decides. A channel that
failed, or that let a call hang, is replaced by a new one with a new look-up of the name; gRPC's own
reconnecting is not relied upon.

Sources: OTLP specification 1.11, "OTLP/gRPC Response"; gRPC core, ``grpc_types.h`` (channel
arguments) and "Connectivity Semantics and API".
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable

import grpc
import grpc.aio

from proto_stubs import SignalSchema
from relay import __version__, tls
from relay.exporters import ExporterConfig
from relay.files import Rotating
from relay.headers import Headers, HeaderSource
from relay.otlp import Accepted, Fault, Outcome, Permanent, Retryable
from relay.response import partial_success
from relay.status import retry_delay

__all__ = ["GrpcChannel", "GrpcExporter", "connection_lost", "outcome_of"]

CONNECT_TIMEOUT = "CONNECT_TIMEOUT"
CONNECT_FAILED = "CONNECT_FAILED"

_RETRYABLE = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""OTLP specification, "Failures": codes that a client may retry without being asked to."""

_FAULTS = {
    grpc.StatusCode.INVALID_ARGUMENT: Fault.INVALID,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Fault.TOO_LARGE,
    grpc.StatusCode.UNIMPLEMENTED: Fault.UNIMPLEMENTED,
}

_COMPRESSION = {"none": grpc.Compression.NoCompression, "gzip": grpc.Compression.Gzip}

_DETAILS = "grpc-status-details-bin"

_MAX_RESPONSE = 64 * 1024
_RESPONSE_TOO_LARGE = "CLIENT: Received message larger than max"

_MAX_METADATA = 1024 * 1024
"""Bytes of headers, so of the text of a failure, that are taken; the library's 8 KiB would turn any
longer one into a RESOURCE_EXHAUSTED of its own."""
_METADATA_TOO_LARGE = "received metadata size exceeds"
_MAX_WORDS = 1000
"""Characters kept of the text of a failure: it goes into the log and the status page."""

_CLOSE_GRACE = 1.0
_ASKING_WHY = 1.0
"""Seconds for the call that is told why a connection failed. It fails at once where the machine is
not busy; a shorter limit would put its own end in the place of the reason."""
_UNLIMITED_GRACE = 60.0

_LOST = (
    "Stream removed",
    "Socket closed",
    "Connection reset",
    "Broken pipe",
    "recvmsg:",
    "sendmsg:",
    "GOAWAY",
    "RST_STREAM",
    "Cancelling all calls",
    "Server shutdown",
    "connections to all backends failing",
    "failed to connect to all addresses",
)
"""What the library says when it makes up an UNAVAILABLE because the connection was lost. Nothing
else of a failed call tells it from a collector's own answer (observed with grpcio 1.85)."""


def connection_lost(message: str) -> bool:
    """Whether the text of an UNAVAILABLE is the library's, for a connection that went away."""
    return any(text in message for text in _LOST)


def outcome_of(
    code: grpc.StatusCode, message: str, details: bytes, *, timed_out: bool
) -> Retryable | Permanent:
    """Sort a failed call. ``details``: the serialized google.rpc.Status, or empty.

    Source: OTLP specification 1.11, "Failures" and "OTLP/gRPC Throttling".
    """
    delay = retry_delay(details) if details else None
    if code in _RETRYABLE:
        return Retryable(code.name, message, delay, timed_out)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and delay is not None:
        return Retryable(code.name, message, delay)
    return Permanent(code.name, _FAULTS.get(code, Fault.OTHER), message)


class GrpcChannel:
    """The connection to one destination. ``warn`` is told of files that cannot be used.

    Raises:
        relay.tls.TlsError: the TLS files cannot be used.
    """

    def __init__(self, config: ExporterConfig, *, warn: Callable[[str], None]) -> None:
        self._config = config
        self._credentials: Rotating[grpc.ChannelCredentials] | None = None
        if config.tls is not None:
            self._credentials = tls.rotating_channel_credentials(config.tls, warn=warn)
        self._generation = 0
        self._channel: grpc.aio.Channel | None = None
        self._connecting: asyncio.Task[Retryable | None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._closing: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self._closed = False
        self._one_address = _is_one_address(config.endpoint)

    @property
    def current(self) -> grpc.aio.Channel | None:
        """The channel of the latest connection, whatever became of it."""
        return self._channel

    def ready(self) -> bool:
        """Whether a connection stands, with the credentials that are in force."""
        if self._channel is None or self._closed:
            return False
        if self._credentials is not None:
            self._credentials.current(time.monotonic())
            if self._credentials.generation != self._generation:
                self.replace(self._channel)
                return False
        return self._stands()

    def _stands(self) -> bool:
        channel = self._channel
        return channel is not None and channel.get_state() is grpc.ChannelConnectivity.READY

    def others_stand(self) -> bool:
        """Whether, after a connection was lost, another address of the collector is connected."""
        return not self._one_address and self.ready()

    async def connect(self) -> Retryable | None:
        """Establish a connection; callers at the same time share one attempt."""
        if self._closed:
            return Retryable(CONNECT_FAILED, "the exporter is closed")
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add_done_callback(self._connected)
        # A caller that gives up does not take the attempt away from the others.
        failure = await asyncio.shield(self._connecting)
        if failure is None and not self._stands():
            # Told as a failure, so that the next attempt waits its turn.
            return Retryable(CONNECT_FAILED, f"{self._config.endpoint} accepted and hung up")
        return failure

    def replace(self, channel: grpc.aio.Channel | None) -> None:
        """Give up ``channel`` if it is the current one; calls under way on it may end."""
        if channel is None or channel is not self._channel:
            return
        self._channel = None
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        grace = _UNLIMITED_GRACE if self._config.timeout is None else self._config.timeout
        closing = asyncio.get_running_loop().create_task(channel.close(grace))
        self._closing[closing] = channel
        closing.add_done_callback(self._closing.pop)

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        self._closed = True
        left = list(self._closing.values())
        tasks: list[asyncio.Task[None] | asyncio.Task[Retryable | None]] = [*self._closing]
        if self._connecting is not None:
            tasks.append(self._connecting)
        if self._watching is not None:
            tasks.append(self._watching)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        channel, self._channel = self._channel, None
        if channel is not None:
            left.append(channel)
        await asyncio.gather(*(each.close(_CLOSE_GRACE) for each in left))

    def _connected(self, task: asyncio.Task[Retryable | None]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # Retrieved; the shielded callers raise it.

    async def _connect(self) -> Retryable | None:
        if self._stands():
            return None
        # What is left of an earlier one, if anything, is about to be given up.
        self.replace(self._channel)
        channel = self._channel = self._new_channel()
        try:
            async with asyncio.timeout(self._config.connect_timeout):
                failed = await _until_ready(channel)
        except TimeoutError:
            self.replace(channel)
            seconds = f"{self._config.connect_timeout:g}"
            return Retryable(
                CONNECT_TIMEOUT, f"no connection to {self._config.endpoint} within {seconds} s"
            )
        if not failed:
            self._watching = asyncio.get_running_loop().create_task(self._watch(channel))
            return None
        why = await _why_not(channel)
        self.replace(channel)
        return Retryable(CONNECT_FAILED, f"cannot connect to {self._config.endpoint}: {why}")

    async def _watch(self, channel: grpc.aio.Channel) -> None:
        """Give the channel up once no connection of it stands.

        The library would connect again at once, without a pause, as often as the other side takes
        the connection and hangs up: a proxy without a collector behind it does.
        """
        await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        self._watching = None
        self.replace(channel)

    def _new_channel(self) -> grpc.aio.Channel:
        config = self._config
        options: list[tuple[str, int | str]] = [
            ("grpc.primary_user_agent", f"otlp-relay/{__version__}"),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            # Ours, or a stuck connection of a channel that was given up is inherited.
            ("grpc.use_local_subchannel_pool", 1),
            # The connect deadline is the larger of this and the current back-off.
            ("grpc.min_reconnect_backoff_ms", max(int(config.connect_timeout * 1000), 1)),
            ("grpc.initial_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", max(int(config.connect_timeout * 1000), 500)),
            ("grpc.dns_min_time_between_resolutions_ms", 1000),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", _MAX_RESPONSE),
            ("grpc.max_metadata_size", _MAX_METADATA),
            ("grpc.absolute_max_metadata_size", _MAX_METADATA),
            # Several addresses share the load, and the loss of one is no outage.
            ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
            ("grpc.service_config_disable_resolution", 1),
        ]
        compression = _COMPRESSION[config.compression]
        if self._credentials is None:
            return grpc.aio.insecure_channel(
                config.endpoint, options=options, compression=compression
            )
        credentials = self._credentials.current(time.monotonic())
        self._generation = self._credentials.generation
        return grpc.aio.secure_channel(
            config.endpoint, credentials, options=options, compression=compression
        )


def _is_one_address(endpoint: str) -> bool:
    """Whether a target can have one address only, as names may not."""
    if endpoint.startswith("unix:"):
        return True
    host = endpoint.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _until_ready(channel: grpc.aio.Channel) -> bool:
    """Wait for an end of connecting; True when it failed."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in {
            grpc.ChannelConnectivity.TRANSIENT_FAILURE,
            grpc.ChannelConnectivity.SHUTDOWN,
        }:
            return True
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    return False


async def _why_not(channel: grpc.aio.Channel) -> str:
    """What the library says of a failed connection: only a call is told, and fails at once."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
    try:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        await call(b"", timeout=_ASKING_WHY)
    except grpc.aio.AioRpcError as error:
        details = error.details() or error.code().name
        why = details.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
        return why.replace("%5B", "[").replace("%5D", "]")  # around an IPv6 address
    except grpc.aio.UsageError:
        pass  # Closed meanwhile.
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
    return "connection failed"


def _is_cancelled() -> bool:
    """Whether the current task was cancelled.

    grpc raises CancelledError also in the caller of a call whose channel is closed.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class GrpcExporter:
    """One signal's way through a :class:`GrpcChannel`. Implements ``relay.exporters.Exporter``."""

    def __init__(
        self,
        schema: SignalSchema,
        config: ExporterConfig,
        channel: GrpcChannel,
        headers: HeaderSource,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._schema = schema
        self._config = config
        self._connection = channel
        self._headers = headers
        self._clock = clock
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] | None = None
        self._call_channel: grpc.aio.Channel | None = None

    def ready(self) -> bool:
        return self._connection.ready()

    async def connect(self) -> Retryable | None:
        return await self._connection.connect()

    async def export(self, payload: bytes) -> Outcome:
        channel = self._connection.current
        if channel is None:
            return Retryable("UNAVAILABLE", "the connection was lost before the request was sent")
        if channel is not self._call_channel or self._call is None:
            self._call = channel.unary_unary(self._schema.method)
            self._call_channel = channel
        started = self._clock()
        headers = self._headers.current(started)
        try:
            response = await self._call(payload, timeout=self._config.timeout, metadata=headers)
        except grpc.aio.AioRpcError as error:
            return self._failed(error, channel, started, headers)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            return Retryable("CANCELLED", "the connection was closed under the request")
        rejected, message = partial_success(response, self._schema)
        return Accepted("OK", rejected, message)

    async def close(self) -> None:
        await self._connection.close()

    def _failed(
        self, error: grpc.aio.AioRpcError, channel: grpc.aio.Channel, started: float, sent: Headers
    ) -> Outcome:
        code = error.code()
        message = (error.details() or "")[:_MAX_WORDS]
        now = self._clock()
        limit = self._config.timeout
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _RESPONSE_TOO_LARGE in message:
            # A message is the answer of a success; to send the request again would double it.
            return Accepted("OK", 0, f"the answer is not read: it is over {_MAX_RESPONSE} bytes")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _METADATA_TOO_LARGE in message:
            return Permanent(code.name, Fault.OTHER, message)  # The request is not what is large.
        timed_out = (
            code is grpc.StatusCode.DEADLINE_EXCEEDED
            and limit is not None
            and now - started >= limit * 0.95
        )
        details = b""
        for key, value in error.trailing_metadata() or ():
            if key == _DETAILS and isinstance(value, bytes):
                details = value
        outcome = outcome_of(code, message, details, timed_out=timed_out)
        if timed_out:
            # The connection may be a dead one that nobody closed. Others may have been answered
            # meanwhile over the connection to another address: that tells nothing of this one.
            self._connection.replace(channel)
        elif code is grpc.StatusCode.UNAUTHENTICATED:
            if self._headers.current(now) != sent or self._headers.refused(now):
                # The token changed meanwhile: once more with the new one.
                return Retryable(code.name, message, 0.1)
        elif (
            code is grpc.StatusCode.UNAVAILABLE
            and connection_lost(message)
            and self._connection.others_stand()
        ):
            return Retryable(code.name, message, rerouted=True)
        return outcome
