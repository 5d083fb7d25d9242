"""Reading a collector's Export response: partial success. Pure.

Source: OTLP specification 1.11, "Partial Success"; one shape for every signal.
"""

from __future__ import annotations

from proto_stubs import SignalSchema
from relay import wire

__all__ = ["partial_success"]

_INT64_SIGN = 1 << 63


def partial_success(response: bytes, schema: SignalSchema) -> tuple[int, str]:
    """The number of rejected items and the collector's words; ``(0, "")`` for a full success.

    A response that cannot be read counts as a full success: its status said so.
    """
    if not response:
        return 0, ""
    rejected, message = 0, b""
    try:
        for number, wire_type, start, end, _ in wire.fields(response, 0, len(response)):
            if number != schema.partial_success or wire_type != wire.LEN:
                continue
            for inner, inner_type, left, right, value in wire.fields(response, start, end):
                if inner == schema.rejected and inner_type == wire.VARINT:
                    rejected = value
                elif inner == schema.error_message and inner_type == wire.LEN:
                    message = response[left:right]
    except wire.MalformedError:
        return 0, ""
    if rejected & _INT64_SIGN:
        rejected = 0  # A negative count; nothing was ever un-received.
    return rejected, message.decode(errors="replace")
