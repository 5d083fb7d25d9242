"""Reading partial successes, held against the real message classes."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from google.protobuf import symbol_database
from hypothesis import given
from hypothesis import strategies as st

from relay.otlp import SIGNALS, TRACES, SignalSchema
from relay.response import partial_success


def response(schema: SignalSchema) -> Any:
    package, _, name = schema.response.rpartition(".")
    service = name.removeprefix("Export").partition("Service")[0].lower()
    importlib.import_module(f"{package}.{service}_service_pb2")
    return symbol_database.Default().GetSymbol(schema.response)()


REJECTED = {
    "traces": "rejected_spans",
    "metrics": "rejected_data_points",
    "logs": "rejected_log_records",
    "profiles": "rejected_profiles",
}


@pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)
@given(count=st.integers(-(2**63), 2**63 - 1), message=st.text(max_size=20))
def test_every_signal_as_the_real_classes_write_it(
    schema: SignalSchema, count: int, message: str
) -> None:
    real = response(schema)
    setattr(real.partial_success, REJECTED[schema.name], count)
    real.partial_success.error_message = message
    found = partial_success(real.SerializeToString(), schema)
    assert found == (max(count, 0), message)


def test_a_full_success() -> None:
    assert partial_success(b"", TRACES) == (0, "")
    real = response(TRACES)
    real.partial_success.SetInParent()
    assert partial_success(real.SerializeToString(), TRACES) == (0, "")


def test_unknown_fields_and_wrong_types_are_passed_over() -> None:
    real = response(TRACES)
    real.partial_success.rejected_spans = 3
    known = real.SerializeToString()
    # Field 1000 with a length; field 1 as a varint; field 1 of the inner one with a length.
    strange = b"\xc2\x3e\x03abc" + b"\x08\x05" + b"\x0a\x03\x0a\x01x"
    assert partial_success(strange + known + strange, TRACES) == (3, "")


@given(st.binary(max_size=60))
def test_no_answer_breaks_it(data: bytes) -> None:
    count, message = partial_success(data, TRACES)
    assert count >= 0
    assert isinstance(message, str)


@given(st.integers(0, 30))
def test_a_truncated_answer_counts_as_a_success(length: int) -> None:
    real = response(TRACES)
    real.partial_success.rejected_spans = 300
    real.partial_success.error_message = "quota exceeded"
    whole = real.SerializeToString()
    if 0 < length < len(whole):
        assert partial_success(whole[:length], TRACES) == (0, "")


def test_words_that_are_no_utf_8_are_shown_as_far_as_they_go() -> None:
    assert partial_success(b"\x0a\x05\x12\x03a\xffb", TRACES) == (0, "a\ufffdb")
