from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.config import Config, Effective, Loaded, Machine, UnknownFlagError, load, parse_flags
from relay.config.settings import BY_FLAG, FAST_EXTRA, SETTINGS, SIGNAL_NAMES, twin
from relay.exporters import ClientTls, ExporterConfig
from relay.limits import PipelineConfig
from relay.processors.patterns import DEFAULT_EXCLUDED
from relay.receivers import Listen, ServerTls

MISSING = "/missing.pem"
HERE = "203.0.113.5"
MACHINE = Machine(
    is_own_address=lambda address: address == HERE,
    why_unreadable=lambda path: "No such file or directory" if path == MISSING else "",
    real_path=lambda path: path.replace("/var/run/", "/run/"),
    examine_tls=lambda files: (
        [f"{path} is junk" for path in astuple(files) if path.startswith("/junk")],
        [f"{path} expired" for path in astuple(files) if path.startswith("/old")],
    ),
)


def loaded(environ: Mapping[str, str] | None = None, *argv: str) -> Loaded:
    result = load(parse_flags(argv), environ or {}, MACHINE)
    assert (result.config is None) == bool(result.faults)
    for line in (*result.faults, *result.warnings):
        assert line.isprintable()
    return result


def config(environ: Mapping[str, str] | None = None, *argv: str) -> Config:
    """The configuration where nothing is at fault and nothing to warn about."""
    result = loaded(environ, *argv)
    assert (result.faults, result.warnings) == ((), ())
    assert result.config is not None
    return result.config


def faults(environ: Mapping[str, str], *argv: str) -> Sequence[str]:
    return loaded(environ, *argv).faults


def warnings(environ: Mapping[str, str], *argv: str) -> Sequence[str]:
    result = loaded(environ, *argv)
    assert result.faults == ()
    return result.warnings


def row(result: Loaded, name: str, signal: str = "") -> Effective:
    (found,) = [each for each in result.effective if (each.name, each.signal) == (name, signal)]
    return found


# Defaults.


def test_an_empty_environment_is_the_documented_configuration() -> None:
    found = config()
    assert str(found.receivers.grpc) == "localhost:4317"
    assert str(found.receivers.http) == "localhost:4318"
    assert str(found.admin) == "localhost:8888"
    assert found.receivers.tls is None
    assert found.receivers.max_request_bytes == 16 * 1024 * 1024
    assert found.receivers.request_timeout == 30.0
    assert tuple(found.exporters) == tuple(found.pipelines) == SIGNAL_NAMES
    for signal in SIGNAL_NAMES:
        assert found.exporters[signal] == ExporterConfig("grpc", "otel-collector:4317")
        assert found.pipelines[signal] == PipelineConfig()
    assert found.processors.excluded == DEFAULT_EXCLUDED
    assert found.processors.included is None
    assert found.processors.enabled
    assert found.processors.sampling_ratio == 1.0
    assert (found.log_level, found.log_format) == ("info", "text")
    assert (found.shutdown_linger, found.shutdown_timeout) == (3.0, 25.0)


def test_the_default_collector_speaks_http_on_4318() -> None:
    found = config({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})
    assert found.exporters["traces"].endpoint == "http://otel-collector:4318/v1/traces"
    assert (
        found.exporters["profiles"].endpoint == "http://otel-collector:4318/v1development/profiles"
    )


# Sources.


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_has_all_its_names(setting: Any) -> None:
    examples = {
        "RELAY_GRPC_LISTEN": "localhost:5317",
        "RELAY_HTTP_LISTEN": "localhost:5318",
        "RELAY_ADMIN_LISTEN": "localhost:9999",
        "RELAY_SOCKET_MODE": "0600",
        "RELAY_REQUEST_TIMEOUT": "2000",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://elsewhere:4317",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=1",
        "OTEL_RESOURCE_ATTRIBUTES": "a=1",
        "OTEL_TRACES_SAMPLER_ARG": "0.5",
        "OTEL_EXCLUDED_URLS": "/x",
        "OTEL_INCLUDED_URLS": "/x",
        "RELAY_LOG_LEVEL": "debug",
        "RELAY_LOG_FORMAT": "json",
        "RELAY_GRPC_ENGINE": "grpcio",
        "RELAY_MAX_CONCURRENT_EXPORTS": "8",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
        "OTEL_SDK_DISABLED": "true",
        "OTEL_ENABLED": "false",
        "OTEL_METRICS_ENABLED": "false",
        "OTEL_DISABLE_SEND_RECEIVE_SPANS": "false",
    }
    value = examples.get(setting.name, "2048")
    shown = setting.kind.parse(value).shown
    for name in setting.names:
        for variable in {name, twin(name)}:
            rows = loaded({variable: value}).effective
            assert [r for r in rows if r.source == variable and r.shown == shown], variable
        on_command_line = next(f for f, n in BY_FLAG.items() if n == name)
        rows = loaded({}, on_command_line, value).effective
        assert [r for r in rows if r.source == f"flag {on_command_line}" and r.shown == shown]


# From the weakest to the strongest; each wins over all before it.
ENDPOINTS = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "RELAY_EXPORTER_ENDPOINT",
    "RELAY_EXPORTER_TRACES_ENDPOINT",
    "--exporter-endpoint",
    "--exporter-traces-endpoint",
]
QUEUES = [
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "RELAY_QUEUE_SIZE",
    "RELAY_BSP_MAX_QUEUE_SIZE",
    "--queue-size",
    "--bsp-max-queue-size",
]


@pytest.mark.parametrize("strongest", range(len(ENDPOINTS)))
def test_the_source_decides_before_the_signal(strongest: int) -> None:
    given = {name: f"http://host{i}:4317" for i, name in enumerate(ENDPOINTS[: strongest + 1])}
    environ = {name: value for name, value in given.items() if not name.startswith("--")}
    flags = {name: value for name, value in given.items() if name.startswith("--")}
    result = load(flags, environ, MACHINE)
    assert result.config is not None
    assert result.config.exporters["traces"].endpoint == f"host{strongest}:4317"


@pytest.mark.parametrize("strongest", range(len(QUEUES)))
def test_the_sdks_names_yield_to_the_relays_own(strongest: int) -> None:
    given = {name: str(1000 + i) for i, name in enumerate(QUEUES[: strongest + 1])}
    environ = {name: value for name, value in given.items() if not name.startswith("--")}
    flags = {name: value for name, value in given.items() if name.startswith("--")}
    result = load(flags, environ, MACHINE)
    assert result.config is not None
    assert result.config.pipelines["traces"].queue_size == 1000 + strongest
    logs = {0: 2048, 1: 1001, 2: 1001, 3: 1003, 4: 1003}[strongest]
    assert result.config.pipelines["logs"].queue_size == logs


def test_an_app_that_exports_to_the_relay_may_share_its_environment() -> None:
    found = config(
        {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4317",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317",
            "RELAY_EXPORTER_ENDPOINT": "http://collector:4317",
        }
    )
    assert {each.endpoint for each in found.exporters.values()} == {"collector:4317"}


def test_settings_of_one_signal_reach_that_signal_alone() -> None:
    found = config(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://all:4317",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://logs/in",
            "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "Key=v",
            "OTEL_EXPORTER_OTLP_HEADERS": "Other=w",
            "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "0",
            "OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE": "/ca.pem",
            "OTEL_BLRP_MAX_QUEUE_SIZE": "4096",
            "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "1024",
            "OTEL_BLRP_SCHEDULE_DELAY": "100",
            "RELAY_CONNECT_TIMEOUT": "1s",
        }
    )
    assert found.exporters["logs"] == ExporterConfig(
        protocol="http/protobuf",
        endpoint="https://logs/in",
        tls=ClientTls(ca_file="/ca.pem"),
        headers=(("Key", "v"),),
        compression="gzip",
        timeout=None,
        connect_timeout=1.0,
    )
    assert found.exporters["metrics"] == ExporterConfig(
        "grpc", "all:4317", headers=(("other", "w"),), connect_timeout=1.0
    )
    assert found.pipelines["logs"] == PipelineConfig(4096, batch_size=1024, schedule_delay=0.1)
    assert found.pipelines["traces"] == PipelineConfig()


def test_empty_counts_as_unset_except_for_the_exclusions() -> None:
    everything = {n: "" for s in SETTINGS for n in (s.name, twin(s.name))}
    assert config(everything).processors.excluded == ()
    del everything["RELAY_EXCLUDED_URLS"], everything["OTEL_EXCLUDED_URLS"]
    assert config(everything) == config()
    assert config({}, "--excluded-urls=").processors.excluded == ()
    assert config({"OTEL_EXCLUDED_URLS": ""}).processors.excluded == ()
    assert config({"RELAY_EXCLUDED_URLS": "", "OTEL_EXCLUDED_URLS": "/x"}).processors.excluded == ()


def test_white_space_around_a_value_is_not_part_of_it() -> None:
    assert config({"RELAY_QUEUE_SIZE": " 4096\n"}).pipelines["traces"].queue_size == 4096


def test_the_last_of_a_repeated_flag_counts() -> None:
    flags = parse_flags(["--queue-size", "1", "--queue-size=3", "--excluded-urls", ""])
    assert flags == {"--queue-size": "3", "--excluded-urls": ""}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--queue-siz", "1"], 'unknown flag "--queue-siz"; did you mean --queue-size?'),
        (["--xyzzy"], 'unknown flag "--xyzzy"'),
        (["--queue-size"], "--queue-size needs a value: --queue-size VALUE or --queue-size=VALUE"),
        (["--queue-size", "--log-level"], "--queue-size needs a value"),
        (["--json=1"], "--json takes no value"),
        (["start"], 'unexpected argument "start"'),
        (["-q\n"], 'unknown flag "-q\\n"'),
    ],
)
def test_refuses_a_wrong_command_line(argv: list[str], says: str) -> None:
    with pytest.raises(UnknownFlagError) as caught:
        parse_flags(argv, also=("--json",))
    assert caught.value.faults[0].startswith(says)


def test_all_faults_of_a_command_line_are_told_together() -> None:
    with pytest.raises(UnknownFlagError) as caught:
        parse_flags(["x", "--a=", "y", "--queue-size"])
    assert len(caught.value.faults) == 4


def test_what_follows_an_unknown_flag_is_no_fault_of_its_own() -> None:
    with pytest.raises(UnknownFlagError) as caught:
        parse_flags(["--queue-siz", "4", "--batch-size", "5"])
    assert caught.value.faults == ('unknown flag "--queue-siz"; did you mean --queue-size?',)


# Faults and warnings.


def test_all_faults_are_reported_together_one_line_each() -> None:
    found = faults(
        {
            "RELAY_QUEUE_SIZE": "many",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
            "RELAY_EXPORTER_TIMEOUT": "-1",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": MISSING,
        },
        "--log-level=loud",
    )
    assert "\n".join(sorted(found)) == (
        '--log-level="loud": expected debug, info, warning or error\n'
        'OTEL_EXPORTER_OTLP_CERTIFICATE="/missing.pem": cannot be read '
        "(No such file or directory); expected the path of a readable file\n"
        'OTEL_EXPORTER_OTLP_PROTOCOL="http/json": expected grpc or http/protobuf\n'
        'RELAY_EXPORTER_TIMEOUT="-1": expected milliseconds, or a number with ms or s, '
        "from 1 ms to 2147483647 ms, or 0: no limit\n"
        'RELAY_QUEUE_SIZE="many": expected a whole number from 1 to 2147483647'
    )


@pytest.mark.parametrize(
    ("environ", "same_as"),
    [
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, {}),
        ({"OTEL_BSP_SCHEDULE_DELAY": "-5"}, {}),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "10s!"}, {}),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, {}),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "token"}, {}),
        ({"OTEL_ENABLED": "no"}, {}),
        ({"OTEL_SDK_DISABLED": "1"}, {}),
        ({"OTEL_TRACES_SAMPLER_ARG": "endpoint=http://x"}, {}),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=1,b"}, {}),
        # Taken as unset: what is weaker steps in.
        (
            {"OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "x", "OTEL_EXPORTER_OTLP_TIMEOUT": "500"},
            {"OTEL_EXPORTER_OTLP_TIMEOUT": "500"},
        ),
    ],
)
def test_a_fault_in_an_otel_variable_is_warned_about_and_taken_as_unset(
    environ: dict[str, str], same_as: dict[str, str]
) -> None:
    result = loaded(environ)
    assert result.config == config(same_as)
    (warning,) = result.warnings
    assert warning.startswith(next(iter(environ)))
    assert warning.endswith("; taken as unset")


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"},
        {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "ftp://x"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "thrift"},
        {"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/json"},
        {"OTEL_EXPORTER_OTLP_INSECURE": "1"},
        {"OTEL_EXPORTER_OTLP_CERTIFICATE": MISSING},
        {"OTEL_EXPORTER_OTLP_CLIENT_KEY": "/key.pem"},
        {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "/cert.pem"},
        {"OTEL_EXCLUDED_URLS": "^/("},
        {"OTEL_INCLUDED_URLS": "/ok,^["},
        {"RELAY_BSP_MAX_QUEUE_SIZE": "0"},
        {"RELAY_TRACES_SAMPLER_ARG": "2"},
        {"RELAY_ENABLED": "1"},
        {"RELAY_TLS_CERT_FILE": "/cert.pem"},
        {"RELAY_TLS_KEY_FILE": "/key.pem"},
        {"RELAY_TLS_CLIENT_CA_FILE": "/ca.pem"},
        {"RELAY_EXPORTER_HEADERS_FILE": MISSING},
        {"RELAY_GRPC_LISTEN": "4317"},
        {"RELAY_GRPC_ENGINE": "other"},
        {"RELAY_REQUEST_TIMEOUT": "30"},
        {"RELAY_SERVICE_NAME": "a\udcff"},
    ],
)
def test_these_faults_end_the_start(environ: dict[str, str]) -> None:
    (fault,) = faults(environ)
    assert fault.startswith(next(iter(environ)))


FAST = {"RELAY_GRPC_ENGINE": "h2corn"}


def with_engine(version: str) -> Machine:
    return replace(MACHINE, installed={"h2corn": version}.__getitem__)


def test_an_engine_that_is_installed_is_taken() -> None:
    result = load({}, FAST, with_engine(FAST_EXTRA))
    assert result.config is not None
    assert result.config.receivers.grpc_engine == "h2corn"


@pytest.mark.parametrize(
    ("version", "why"), [("", "not installed"), ("1.5.1", "version 1.5.1 is installed")]
)
def test_an_engine_that_is_not_there_is_a_fault_that_names_the_extra(
    version: str, why: str
) -> None:
    (fault,) = load({}, FAST, with_engine(version)).faults
    assert fault == (
        f"RELAY_GRPC_ENGINE=h2corn: {why}, needs {FAST_EXTRA} "
        "(pip install 'otlp-relay[fast]' brings it)"
    )
    # Nobody needs what does not listen.
    assert not load({}, {**FAST, "RELAY_GRPC_LISTEN": "off"}, with_engine(version)).faults


def test_what_the_engine_cannot_serve_is_a_fault() -> None:
    secure = {"RELAY_TLS_CERT_FILE": "/cert.pem", "RELAY_TLS_KEY_FILE": "/key.pem"}
    local = {"RELAY_GRPC_LISTEN": "unix:/run/otlp.sock"}
    machine = with_engine(FAST_EXTRA)
    (fault,) = load(parse_flags(["--grpc-engine=h2corn"]), {**secure, **local}, machine).faults
    assert fault.startswith("--grpc-engine=h2corn: no TLS on a Unix socket")
    for fine in (secure, local):
        assert not load({}, {**FAST, **fine}, machine).faults
    assert not load({}, {**secure, **local}, machine).faults


def test_a_fault_in_a_relay_variable_counts_even_where_a_flag_wins() -> None:
    (fault,) = faults({"RELAY_QUEUE_SIZE": "x"}, "--queue-size=5")
    assert fault.startswith("RELAY_QUEUE_SIZE")


def test_an_otel_variable_that_is_not_used_is_nobodys_fault() -> None:
    config(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "meant for the app",
            "RELAY_EXPORTER_ENDPOINT": "http://collector:4317",
        }
    )


def test_one_fault_brings_no_others() -> None:
    (fault,) = faults(
        {
            "RELAY_EXPORTER_ENDPOINT": "http://",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317",
        }
    )
    assert fault.startswith("RELAY_EXPORTER_ENDPOINT")
    (fault,) = faults({"RELAY_HTTP_LISTEN": "x", "RELAY_GRPC_LISTEN": "localhost:4318"})
    assert fault.startswith("RELAY_HTTP_LISTEN")


def test_an_unknown_variable_is_warned_about_with_the_nearest_name() -> None:
    assert warnings({"RELAY_QUEUE_SIZ": "1", "RELAY_XYZZY": "2", "OTEL_XYZZY": "3"}) == (
        "RELAY_QUEUE_SIZ: no such setting; did you mean RELAY_QUEUE_SIZE?",
        "RELAY_XYZZY: no such setting",
    )


def test_kubernetes_variables_for_a_service_named_relay_are_one_warning() -> None:
    (warning,) = warnings(
        {
            "RELAY_SERVICE_HOST": "10.0.0.1",
            "RELAY_SERVICE_PORT": "4317",
            "RELAY_SERVICE_PORT_GRPC": "4317",
            "RELAY_PORT": "tcp://10.0.0.1:4317",
            "RELAY_PORT_4317_TCP": "tcp://10.0.0.1:4317",
            "RELAY_PORT_4317_TCP_ADDR": "10.0.0.1",
        }
    )
    assert "enableServiceLinks" in warning


# Secrets.


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20s3cret"},
        {"RELAY_EXPORTER_HEADERS": "s3cret"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "s3cret"},
        {"RELAY_EXPORTER_LOGS_HEADERS": "a=s3cret%00"},
        {"RELAY_EXPORTER_HEADERS": "na!me=s3cret"},
        {"RELAY_EXPORTER_ENDPOINT": "http://me:s3cret@collector:4317"},
        {"RELAY_EXPORTER_ENDPOINT": "me:s3cret@collector:4317"},
        {"RELAY_EXPORTER_ENDPOINT": "http://s3cret@[x:4317"},
        {"RELAY_EXPORTER_ENDPOINT": "https://collector/?key=s3cret"},
        {
            "RELAY_EXPORTER_TRACES_ENDPOINT": "https://collector/?key=s3cret",
            "RELAY_EXPORTER_TRACES_PROTOCOL": "http/protobuf",
        },
    ],
)
def test_secrets_are_in_no_report(environ: dict[str, str]) -> None:
    result = loaded(environ)
    told = [*result.faults, *result.warnings, *map(repr, result.effective), repr(result.config)]
    assert not [line for line in told[:-1] if "s3cret" in line]
    if "HEADERS" in next(iter(environ)):
        assert "s3cret" not in told[-1]


def test_grpc_has_fewer_header_names_than_http() -> None:
    environ = {"RELAY_EXPORTER_HEADERS": "X!=1,trace=2"}
    assert len(faults(environ)) == 1
    environ["RELAY_EXPORTER_PROTOCOL"] = "http/protobuf"
    assert config(environ).exporters["traces"].headers == (("X!", "1"), ("trace", "2"))


# TLS.


def test_listener_tls() -> None:
    environ = {"RELAY_TLS_CERT_FILE": "/c.pem", "RELAY_TLS_KEY_FILE": "/k.pem"}
    assert config(environ).receivers.tls == ServerTls("/c.pem", "/k.pem")
    environ["RELAY_TLS_CLIENT_CA_FILE"] = "/ca.pem"
    assert config(environ).receivers.tls == ServerTls("/c.pem", "/k.pem", "/ca.pem")


def test_files_of_a_listener_that_cannot_be_used_end_the_start() -> None:
    environ = {"RELAY_TLS_CERT_FILE": "/junk.pem", "RELAY_TLS_KEY_FILE": "/k.pem"}
    assert faults(environ) == ("RELAY_TLS_CERT_FILE, RELAY_TLS_KEY_FILE: /junk.pem is junk",)
    environ["RELAY_TLS_CERT_FILE"] = "/old.pem"
    assert warnings(environ) == ("RELAY_TLS_CERT_FILE, RELAY_TLS_KEY_FILE: /old.pem expired",)


def test_files_for_the_collector_that_cannot_be_used_end_the_start() -> None:
    environ = {
        "RELAY_EXPORTER_ENDPOINT": "https://c:4317",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "/junk.pem",
    }
    assert faults(environ) == ("OTEL_EXPORTER_OTLP_CERTIFICATE: /junk.pem is junk",)
    assert warnings({**environ, "OTEL_EXPORTER_OTLP_CERTIFICATE": "/old.pem"}) == (
        "OTEL_EXPORTER_OTLP_CERTIFICATE: /old.pem expired",
    )
    # Said once: that it cannot be read.
    (fault,) = faults({**environ, "OTEL_EXPORTER_OTLP_CERTIFICATE": MISSING})
    assert "cannot be read" in fault


def test_tls_to_the_collector() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4317",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "/c.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": "/k.pem",
    }
    assert config(environ).exporters["logs"].tls == ClientTls("", "/c.pem", "/k.pem")
    assert config({"RELAY_EXPORTER_ENDPOINT": "c:4317"}).exporters["logs"].tls == ClientTls()
    assert (
        config({"RELAY_EXPORTER_ENDPOINT": "c:4317", "OTEL_EXPORTER_OTLP_INSECURE": "TRUE"})
        .exporters["logs"]
        .tls
        is None
    )


def test_a_certificate_for_a_plaintext_connection_is_warned_about() -> None:
    found = warnings({"OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE": "/ca.pem"})
    assert len(found) == 1
    assert "the connection for logs is plaintext" in found[0]


# Across settings.


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://localhost:4317",
        "http://LOCALHOST.:4317",
        "http://127.0.0.1:4317",
        "http://127.0.0.53:4317",
        "http://127.1:4317",
        "http://[::1]:4317",
        "http://[::ffff:127.0.0.1]:4317",
        "http://0.0.0.0:4317",
        "http://[::]:4317",
        f"http://{HERE}:4317",
        "https://localhost:4317",
        "localhost:4317",
        "http://localhost:4318",
        "http://localhost:8888",
    ],
)
def test_refuses_to_forward_to_itself(endpoint: str) -> None:
    (fault,) = faults({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    assert "forward to itself" in fault
    assert "RELAY_EXPORTER_ENDPOINT" in fault


@pytest.mark.parametrize(
    ("listen", "endpoint", "loop"),
    [
        ("unix:/run/relay.sock", "unix:/run/relay.sock", True),
        ("unix:/var/run/relay.sock", "unix:///run/relay.sock", True),
        ("unix:/run/relay.sock", "unix:/run/collector.sock", False),
        ("unix:/run/relay.sock", "http://localhost:4317", False),
        ("relay.internal:4317", "http://Relay.internal:4317", True),
        ("localhost:5317", "http://localhost:4317", False),
        ("localhost:0", "http://localhost:4317", False),
        ("off", "http://localhost:4317", False),
        ("0.0.0.0:4317", f"http://{HERE}:4317", True),
        ("0.0.0.0:4317", "http://203.0.113.6:4317", False),
        ("0.0.0.0:80", "http://localhost", True),
        ("0.0.0.0:443", "https://localhost", True),
    ],
)
def test_what_is_a_loop_depends_on_the_listeners(listen: str, endpoint: str, loop: bool) -> None:
    found = faults({"RELAY_GRPC_LISTEN": listen, "RELAY_EXPORTER_LOGS_ENDPOINT": endpoint})
    assert [("forward to itself" in fault) for fault in found] == ([True] if loop else [])


def test_a_listener_with_a_fault_is_in_no_loop() -> None:
    (fault,) = faults(
        {"RELAY_GRPC_LISTEN": "x", "RELAY_EXPORTER_ENDPOINT": "http://localhost:4317"}
    )
    assert fault.startswith("RELAY_GRPC_LISTEN")


@pytest.mark.parametrize(
    ("grpc", "http", "clash"),
    [
        ("localhost:1", "localhost:1", True),
        ("localhost:1", "127.0.0.1:1", True),
        ("localhost:1", "[::1]:1", True),
        ("0.0.0.0:1", "10.0.0.1:1", True),
        ("[::]:1", "localhost:1", True),
        ("127.0.0.1:1", "127.1:1", True),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("127.0.0.1:1", "[::1]:1", False),
        ("localhost:1", "10.0.0.1:1", False),
        ("localhost:1", "localhost:2", False),
        ("localhost:0", "localhost:0", False),
        ("a:1", "b:1", False),
        ("unix:/run/a", "unix:/var/run/a", True),
        ("unix:/run/a", "unix:/run/b", False),
        ("unix:/run/a", "off", False),
    ],
)
def test_two_listeners_cannot_share_an_address(grpc: str, http: str, clash: bool) -> None:
    found = faults({"RELAY_GRPC_LISTEN": grpc, "RELAY_HTTP_LISTEN": http})
    assert ["listens there already" in fault for fault in found] == ([True] if clash else [])


def test_a_relay_that_could_receive_nothing_does_not_start() -> None:
    (fault,) = faults({"RELAY_GRPC_LISTEN": "off", "RELAY_HTTP_LISTEN": "off"})
    assert "nothing could be received" in fault
    assert config({"RELAY_GRPC_LISTEN": "off", "RELAY_ADMIN_LISTEN": "off"}).admin == Listen()


def test_a_batch_is_at_most_its_queue() -> None:
    lowered = loaded({"OTEL_BSP_MAX_QUEUE_SIZE": "100", "RELAY_QUEUE_MAX_BYTES": "1MiB"})
    assert lowered.warnings == ()
    assert lowered.config is not None
    assert lowered.config.pipelines["traces"].batch_size == 100
    assert lowered.config.pipelines["logs"].batch_size == 512
    assert lowered.config.pipelines["logs"].export_max_bytes == 2**20
    assert row(lowered, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "traces") == Effective(
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "traces", "100", "default, lowered to the queue's"
    )
    assert warnings({"RELAY_QUEUE_SIZE": "100", "RELAY_BATCH_SIZE": "200"}) == (
        "RELAY_BATCH_SIZE=200: lowered to 100, the size of the queue (RELAY_QUEUE_SIZE)",
    )


def test_a_linger_that_takes_the_whole_shutdown_is_warned_about() -> None:
    assert len(warnings({"RELAY_SHUTDOWN_LINGER": "30s"})) == 1


def test_inclusions_make_given_exclusions_pointless() -> None:
    assert config({"OTEL_INCLUDED_URLS": "/api/*"}).processors.included == ("/api/*",)
    (warning,) = warnings({"OTEL_INCLUDED_URLS": "/api/*", "OTEL_EXCLUDED_URLS": "/x"})
    assert warning == "OTEL_EXCLUDED_URLS: ignored, since OTEL_INCLUDED_URLS is set"


@pytest.mark.parametrize(
    ("environ", "enabled"),
    [
        ({"OTEL_ENABLED": "false"}, False),
        ({"OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_ENABLED": "true", "OTEL_SDK_DISABLED": "true"}, False),
        ({"RELAY_ENABLED": "true", "OTEL_SDK_DISABLED": "true"}, True),
        ({"RELAY_SDK_DISABLED": "false", "OTEL_ENABLED": "false"}, True),
        ({"RELAY_SDK_DISABLED": "true", "RELAY_ENABLED": "true"}, False),
    ],
)
def test_two_settings_that_disable(environ: dict[str, str], enabled: bool) -> None:
    assert config(environ).processors.enabled is enabled


def test_the_service_name_wins_over_the_attributes() -> None:
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,team=b"}
    assert config(environ).processors.resource_attributes == (
        ("service.name", "a"),
        ("team", "b"),
    )
    environ["OTEL_SERVICE_NAME"] = "c"
    assert config(environ).processors.resource_attributes == (("team", "b"),)
    assert config(environ).processors.service_name == "c"


# The report.


def test_the_report_says_where_every_value_came_from() -> None:
    result = loaded(
        {
            "RELAY_EXPORTER_ENDPOINT": "http://collector:4317",
            "OTEL_BSP_MAX_QUEUE_SIZE": "4096",
            "OTEL_EXPORTER_OTLP_HEADERS": "a=b",
        },
        "--log-format=json",
    )
    assert row(result, "OTEL_EXPORTER_OTLP_ENDPOINT") == Effective(
        "OTEL_EXPORTER_OTLP_ENDPOINT", "", "http://collector:4317", "RELAY_EXPORTER_ENDPOINT"
    )
    assert row(result, "RELAY_LOG_FORMAT").source == "flag --log-format"
    assert row(result, "OTEL_BSP_MAX_QUEUE_SIZE", "traces").shown == "4096"
    assert row(result, "RELAY_QUEUE_SIZE", "metrics").shown == "2048"
    assert row(result, "OTEL_EXPORTER_OTLP_HEADERS").shown == "1 header, <redacted>"
    names = {each.name for each in result.effective}
    assert names >= {each.name for each in SETTINGS}


# Whatever is given.

VARIABLES = [n for s in SETTINGS for name in s.names for n in (name, twin(name))]
VALUES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["true", "0", "1", "100", "off", "grpc", "http/protobuf", "a=b", "\udcff"]),
    st.sampled_from(["localhost:4317", "http://localhost:4317", "https://c/x?y", "unix:/a", "c:1"]),
    st.sampled_from(["/x", "^/(", "a\nb", "0.5", "gzip"]),
)


@settings(deadline=None)
@given(
    environ=st.dictionaries(
        st.one_of(st.sampled_from(VARIABLES), st.text(max_size=9).map("RELAY_".__add__)),
        VALUES,
        max_size=6,
    ),
    flags=st.dictionaries(st.sampled_from(list(BY_FLAG)), VALUES, max_size=3),
)
def test_any_environment_loads_or_says_why_not(
    environ: dict[str, str], flags: dict[str, str]
) -> None:
    result = load(flags, environ, MACHINE)
    assert (result.config is None) == bool(result.faults)
    lines = (*result.faults, *result.warnings, *(each.shown for each in result.effective))
    assert all(line.isprintable() for line in lines)


def test_the_real_machine_is_asked_by_default(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.pem")
    environ = {
        "RELAY_EXPORTER_ENDPOINT": "https://collector",
        "RELAY_EXPORTER_CERTIFICATE": missing,
    }
    assert len(load({}, environ).faults) == 1
