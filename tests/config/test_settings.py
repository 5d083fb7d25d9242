import re

import pytest

from relay.config import settings
from relay.config.settings import BY_FLAG, GROUPS, SETTINGS, SIGNAL_NAMES, Setting, flag, twin
from relay.processors.patterns import DEFAULT_EXCLUDED

# Every name and default of the configuration that users rely on.
DOCUMENTED = {
    "RELAY_GRPC_LISTEN": "localhost:4317",
    "RELAY_HTTP_LISTEN": "localhost:4318",
    "RELAY_ADMIN_LISTEN": "localhost:8888",
    "RELAY_SOCKET_MODE": 0o660,
    "RELAY_TLS_CERT_FILE": "",
    "RELAY_TLS_KEY_FILE": "",
    "RELAY_TLS_CLIENT_CA_FILE": "",
    "RELAY_MAX_REQUEST_BYTES": 16 * 1024 * 1024,
    "RELAY_MAX_CONNECTIONS": 1024,
    "RELAY_MAX_STREAMS": 128,
    "RELAY_REQUEST_TIMEOUT": 30.0,
    "RELAY_GRPC_ENGINE": "grpcio",
    "OTEL_EXPORTER_OTLP_ENDPOINT": None,
    "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    "OTEL_EXPORTER_OTLP_INSECURE": False,
    "OTEL_EXPORTER_OTLP_CERTIFICATE": "",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY": "",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "",
    "OTEL_EXPORTER_OTLP_HEADERS": (),
    "RELAY_EXPORTER_HEADERS_FILE": "",
    "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
    "OTEL_EXPORTER_OTLP_TIMEOUT": 10.0,
    "RELAY_CONNECT_TIMEOUT": 5.0,
    "RELAY_QUEUE_SIZE": 2048,
    "RELAY_QUEUE_MAX_BYTES": 16 * 1024 * 1024,
    "RELAY_BATCH_SIZE": 512,
    "RELAY_SCHEDULE_DELAY": 5.0,
    "RELAY_EXPORT_MAX_BYTES": 4_000_000,
    "RELAY_MAX_CONCURRENT_EXPORTS": 4,
    "OTEL_ENABLED": True,
    "OTEL_SDK_DISABLED": False,
    "OTEL_METRICS_ENABLED": True,
    "OTEL_SERVICE_NAME": "",
    "OTEL_RESOURCE_ATTRIBUTES": (),
    "OTEL_TRACES_SAMPLER_ARG": 1.0,
    "OTEL_EXCLUDED_URLS": DEFAULT_EXCLUDED,
    "OTEL_INCLUDED_URLS": None,
    "OTEL_DISABLE_SEND_RECEIVE_SPANS": True,
    "RELAY_SHUTDOWN_LINGER": 3.0,
    "RELAY_SHUTDOWN_TIMEOUT": 25.0,
    "RELAY_LOG_LEVEL": "info",
    "RELAY_LOG_FORMAT": "text",
}


def default(setting: Setting[object]) -> object:
    if setting.default:
        return setting.kind.parse(setting.default).value
    assert setting.kind.unset is not None
    return setting.kind.unset.value


def test_the_table_has_the_documented_settings_and_defaults() -> None:
    found = {each.name: default(each) for each in SETTINGS}
    shown = {n: str(v) if n.endswith("_LISTEN") else v for n, v in found.items()}
    assert shown == DOCUMENTED


def test_the_default_exclusions_are_the_documented_ones() -> None:
    assert settings.EXCLUDED_URLS.default == (
        "/health,/healthz,/ready,/readyz,/livez,/metrics,/api/docs,/api/openapi.json,/favicon.ico"
    )


@pytest.mark.parametrize(
    ("variable", "relay", "on_command_line"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "RELAY_EXPORTER_ENDPOINT", "--exporter-endpoint"),
        (
            "OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY",
            "RELAY_EXPORTER_LOGS_CLIENT_KEY",
            "--exporter-logs-client-key",
        ),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "RELAY_BSP_MAX_QUEUE_SIZE", "--bsp-max-queue-size"),
        ("OTEL_SERVICE_NAME", "RELAY_SERVICE_NAME", "--service-name"),
        ("RELAY_QUEUE_SIZE", "RELAY_QUEUE_SIZE", "--queue-size"),
    ],
)
def test_one_rule_gives_all_names(variable: str, relay: str, on_command_line: str) -> None:
    assert twin(variable) == relay
    assert flag(variable) == flag(relay) == on_command_line


def test_no_two_settings_share_a_name() -> None:
    names = [name for each in SETTINGS for name in each.names]
    assert len({twin(name) for name in names}) == len(names) == len(BY_FLAG)
    assert all(re.fullmatch("--[a-z]+(-[a-z]+)*", each) for each in BY_FLAG)


def test_what_goes_to_the_collector_can_be_set_for_every_signal() -> None:
    for each in SETTINGS:
        if each.name.startswith(("OTEL_EXPORTER_OTLP_", "RELAY_EXPORTER_")):
            assert tuple(each.own) == SIGNAL_NAMES == ("traces", "metrics", "logs", "profiles")
    assert settings.TIMEOUT.own["profiles"] == "OTEL_EXPORTER_OTLP_PROFILES_TIMEOUT"
    assert settings.HEADERS_FILE.own["traces"] == "RELAY_EXPORTER_TRACES_HEADERS_FILE"


def test_every_setting_is_explained() -> None:
    for each in SETTINGS:
        assert each.group in GROUPS
        assert each.meaning.endswith(".")
        assert each.kind.accepts
