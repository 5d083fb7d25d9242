"""What needs OTLP's message classes: JSON bodies, and items as readable lines.

Imported only where one of these is asked for. The relay's own JSON reader is deliberately not
used: a sink that shares it could not find its faults.

Source: OTLP specification 1.11, "JSON Protobuf Encoding" (ids in hex, unknown fields ignored).
"""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf import json_format, symbol_database
from google.protobuf.message import DecodeError, Message

from proto_stubs import SignalSchema

__all__ = ["describe", "from_json", "response_as_json"]

_HEX = frozenset(("traceId", "spanId", "parentSpanId"))


@cache
def _class_of(full_name: str) -> type[Message]:
    """The class of an Export request or response; its module is named after its package."""
    package, _, message = full_name.rpartition(".")
    service = message.removeprefix("Export").partition("Service")[0].lower()
    importlib.import_module(f"{package}.{service}_service_pb2")
    return symbol_database.Default().GetSymbol(full_name)


def from_json(body: bytes, signal: SignalSchema) -> bytes:
    """An OTLP/JSON Export request as protobuf.

    Raises:
        ValueError: it is not one.
    """
    message = _class_of(signal.request)()
    try:
        document = json.loads(body)
        json_format.ParseDict(_hex_to_base64(document), message, ignore_unknown_fields=True)
    except (json_format.ParseError, RecursionError) as error:
        raise ValueError(f"no OTLP/JSON request of {signal.name}: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"no OTLP/JSON request of {signal.name}: not a JSON object")  # noqa: TRY004
    return message.SerializeToString()


def _hex_to_base64(value: Any) -> Any:
    """Ids are hex in OTLP/JSON, where the JSON mapping of protobuf has base64."""
    if isinstance(value, list):
        return [_hex_to_base64(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(inner)).decode()
        if key in _HEX and isinstance(inner, str)
        else _hex_to_base64(inner)
        for key, inner in value.items()
    }


def response_as_json(body: bytes, signal: SignalSchema) -> bytes:
    """A serialized Export response in JSON."""
    message = _class_of(signal.response).FromString(body)
    return json_format.MessageToJson(message, indent=None).encode()


def describe(payload: bytes, signal: SignalSchema) -> Iterator[str]:
    """One line for each item of a serialized request.

    A request whose items do not parse gives one line that says so (the sink checks structure
    only down to the items).
    """
    try:
        request = _class_of(signal.request).FromString(payload)
    except DecodeError as error:
        yield f"{signal.name}: {len(payload)} bytes that do not parse: {error}"
        return
    for resource in _repeated(request, signal.resources):
        service = _service(resource)
        for scope in _repeated(resource, signal.scopes):
            for unit in _repeated(scope, signal.units):
                for item, words in _items(unit, signal):
                    yield f"{signal.item} service={service} {words} {_attributes(item)}".rstrip()


def _repeated(message: Any, number: int) -> Any:
    return getattr(message, message.DESCRIPTOR.fields_by_number[number].name)


def _service(resource: Any) -> str:
    for attribute in resource.resource.attributes:
        if attribute.key == "service.name":
            return json.dumps(attribute.value.string_value)
    return "-"


def _items(unit: Any, signal: SignalSchema) -> Iterator[tuple[Any, str]]:
    if signal.name == "traces":
        milliseconds = (unit.end_time_unix_nano - unit.start_time_unix_nano) / 1e6
        yield (
            unit,
            (
                f"trace={unit.trace_id.hex()} span={unit.span_id.hex()} "
                f"name={json.dumps(unit.name)} ms={milliseconds:g}"
            ),
        )
    elif signal.name == "metrics":
        data = unit.WhichOneof("data")
        for point in getattr(unit, data).data_points if data else ():
            value = None
            if "value" in point.DESCRIPTOR.oneofs_by_name:
                value = point.WhichOneof("value")
            figure = getattr(point, value) if value else f"count {getattr(point, 'count', 0)}"
            yield point, f"name={json.dumps(unit.name)} {data}={figure}"
    elif signal.name == "logs":
        body = _value(unit.body)
        yield unit, f"severity={unit.severity_text or unit.severity_number} body={body}"
    else:
        yield unit, f"profile={unit.profile_id.hex()} samples={len(unit.samples)}"


def _attributes(item: Any) -> str:
    if "attributes" not in item.DESCRIPTOR.fields_by_name:
        return ""
    return " ".join(f"{each.key}={_value(each.value)}" for each in item.attributes)


def _value(value: Any) -> str:
    kind = value.WhichOneof("value")
    if kind is None:
        return "-"
    content = getattr(value, kind)
    if kind == "string_value":
        return json.dumps(content)
    if kind == "bytes_value":
        return str(content.hex())
    if kind == "array_value":
        return "[" + ",".join(_value(each) for each in content.values) + "]"
    if kind == "kvlist_value":
        return "{" + ",".join(f"{each.key}={_value(each.value)}" for each in content.values) + "}"
    return str(content)
