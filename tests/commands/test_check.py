import json

import pytest

from relay.commands import UsageError, check
from relay.config.settings import SETTINGS


def test_prints_every_value_with_its_source_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    environ = {
        "RELAY_EXPORTER_ENDPOINT": "http://collector:4317",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=s3cret",
        "OTEL_SERVICE_NAME": "shop\udcff",
        "RELAY_SERVICE_NAME": "shop",
    }
    assert check.run(["--queue-size", "4096"], environ) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "s3cret" not in out
    settings, destinations = out.split("\n\n")
    header, *rows = settings.splitlines()
    source, value = header.index("SOURCE"), header.index("VALUE")
    table = {row[:source].strip(): (row[source:value].strip(), row[value:].strip()) for row in rows}
    assert set(table) == {setting.name for setting in SETTINGS}
    assert table["OTEL_EXPORTER_OTLP_ENDPOINT"] == (
        "RELAY_EXPORTER_ENDPOINT",
        "http://collector:4317",
    )
    assert table["RELAY_QUEUE_SIZE"] == ("flag --queue-size", "4096")
    assert table["RELAY_BATCH_SIZE"] == ("default", "512")
    assert table["OTEL_SERVICE_NAME"] == ("RELAY_SERVICE_NAME", "shop")
    assert [row.split() for row in destinations.splitlines()[1:]] == [
        [signal, "grpc", "collector:4317", "(plaintext)"]
        for signal in ("traces", "metrics", "logs", "profiles")
    ]


def test_faults_and_warnings_go_to_stderr_and_the_values_are_still_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    environ = {"RELAY_QUEUE_SIZE": "x", "RELAY_BATCH_SIZE": "0", "RELAY_X": "1"}
    assert check.run([], environ) == 2
    out, err = capsys.readouterr()
    assert "RELAY_GRPC_LISTEN" in out
    assert "DESTINATION" not in out
    assert err.splitlines() == [
        "warning: RELAY_X: no such setting",
        'fault: RELAY_QUEUE_SIZE="x": expected a whole number from 1 to 2147483647',
        'fault: RELAY_BATCH_SIZE="0": expected a whole number from 1 to 2147483647',
        "2 faults: otlp-relay run would not start",
    ]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    environ = {
        "RELAY_EXPORTER_TRACES_ENDPOINT": "https://collector/in?key=s3cret",
        "RELAY_EXPORTER_TRACES_PROTOCOL": "http/protobuf",
    }
    assert check.run(["--json"], environ) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "s3cret" not in out
    found = json.loads(out)
    assert (found["valid"], found["faults"], found["warnings"]) == (True, [], [])
    assert {
        "name": "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "signal": "traces",
        "value": "https://collector/in?<redacted>",
        "source": "RELAY_EXPORTER_TRACES_ENDPOINT",
    } in found["settings"]
    assert found["destinations"][0] == {
        "signal": "traces",
        "protocol": "http/protobuf",
        "destination": "https://collector/in?<redacted> (TLS)",
    }


def test_json_has_the_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.run(["--json", "--queue-size=0"], {}) == 2
    found = json.loads(capsys.readouterr().out)
    assert not found["valid"]
    assert len(found["faults"]) == 1
    assert found["destinations"] == []


def test_an_unknown_flag_is_a_usage_error() -> None:
    with pytest.raises(UsageError) as caught:
        check.run(["--jsn"], {})
    assert caught.value.faults == ('unknown flag "--jsn"; did you mean --json?',)
