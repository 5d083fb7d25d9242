import json

import pytest

from relay.commands import UsageError, explain

Capture = pytest.CaptureFixture[str]


def explained(capsys: Capture, *argv: str, **environ: str) -> list[str]:
    assert explain.run(argv, environ) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [" ".join(line.split()) for line in out.splitlines()]


def test_says_what_the_defaults_do(capsys: Capture) -> None:
    assert explained(capsys, "/health", "/api/v1/health", "https://shop:8000/metrics?a=b#c") == [
        "/health not traced /health in OTEL_EXCLUDED_URLS (default)",
        "/api/v1/health traced no pattern matches in OTEL_EXCLUDED_URLS (default)",
        "https://shop:8000/metrics?a=b#c not traced /metrics in OTEL_EXCLUDED_URLS (default)",
    ]


@pytest.mark.parametrize(
    ("argv", "environ", "decides"),
    [
        (["--excluded-urls", "/a*"], {"RELAY_EXCLUDED_URLS": "/x"}, "flag --excluded-urls"),
        (["--excluded-urls=/a*"], {}, "flag --excluded-urls"),
        ([], {"RELAY_EXCLUDED_URLS": "/a*", "OTEL_EXCLUDED_URLS": "/x"}, "RELAY_EXCLUDED_URLS"),
        ([], {"OTEL_EXCLUDED_URLS": "/b,/a*"}, "OTEL_EXCLUDED_URLS"),
    ],
)
def test_settings_have_the_precedence_that_run_gives_them(
    capsys: Capture, argv: list[str], environ: dict[str, str], decides: str
) -> None:
    assert explained(capsys, "/ab", *argv, **environ) == [
        f"/ab not traced /a* in OTEL_EXCLUDED_URLS ({decides})"
    ]


def test_an_empty_list_clears_the_default(capsys: Capture) -> None:
    assert explained(capsys, "/health", OTEL_EXCLUDED_URLS="") == [
        "/health traced no pattern matches in OTEL_EXCLUDED_URLS (OTEL_EXCLUDED_URLS)"
    ]


def test_inclusions_decide_alone(capsys: Capture) -> None:
    assert explained(capsys, "/health", "/api/x", "/", "--included-urls", "^/api/,/health") == [
        "/health traced /health in OTEL_INCLUDED_URLS (flag --included-urls)",
        "/api/x traced ^/api/ in OTEL_INCLUDED_URLS (flag --included-urls)",
        "/ not traced no pattern matches in OTEL_INCLUDED_URLS (flag --included-urls)",
    ]


def test_a_url_without_a_path_is_the_root(capsys: Capture) -> None:
    assert explained(capsys, "http://shop?x", OTEL_EXCLUDED_URLS="/")[0].startswith(
        "http://shop?x not traced / in"
    )


def test_says_what_sampling_leaves(capsys: Capture) -> None:
    assert explained(capsys, "/x", OTEL_TRACES_SAMPLER_ARG="0.1")[1:] == [
        "of what is traced, 0.1 of all traces are kept (OTEL_TRACES_SAMPLER_ARG)"
    ]
    assert len(explained(capsys, "/health", OTEL_TRACES_SAMPLER_ARG="0.1")) == 1


@pytest.mark.parametrize(
    ("environ", "decides"),
    [
        ({"RELAY_ENABLED": "false"}, "OTEL_ENABLED (RELAY_ENABLED)"),
        ({"OTEL_SDK_DISABLED": "true"}, "OTEL_SDK_DISABLED (OTEL_SDK_DISABLED)"),
    ],
)
def test_says_when_nothing_is_traced_at_all(
    capsys: Capture, environ: dict[str, str], decides: str
) -> None:
    assert explained(capsys, "/x", **environ) == [f"/x not traced the relay is disabled: {decides}"]


def test_json(capsys: Capture) -> None:
    assert explain.run(["--json", "/health", "http://h/é?x"], {}) == 0
    assert json.loads(capsys.readouterr().out) == {
        "sampling_ratio": 1.0,
        "urls": [
            {
                "url": "/health",
                "path": "/health",
                "traced": False,
                "setting": "OTEL_EXCLUDED_URLS",
                "source": "default",
                "pattern": "/health",
            },
            {
                "url": "http://h/é?x",
                "path": "/é",
                "traced": True,
                "setting": "OTEL_EXCLUDED_URLS",
                "source": "default",
                "pattern": None,
            },
        ],
    }


@pytest.mark.parametrize(
    ("argv", "environ", "fault"),
    [
        ([], {}, "at least one URL"),
        (["health"], {}, "'health' is neither a URL nor a path"),
        (["/x", "--exclude", "/y"], {}, "--exclude"),
        (["/x", "--excluded-urls"], {}, "needs a value"),
        (["/x"], {"OTEL_EXCLUDED_URLS": "^/("}, r"\^/\("),
        (["/x"], {"OTEL_EXPORTER_OTLP_ENDPOINT": "ftp://x"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_faults_are_usage_errors(argv: list[str], environ: dict[str, str], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        explain.run(argv, environ)


def test_warnings_go_to_stderr(capsys: Capture) -> None:
    assert explain.run(["/x"], {"RELAY_EXCLUDED_URL": "/x"}) == 0
    assert "RELAY_EXCLUDED_URL" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_says_what_it_does_and_names_the_flags(capsys: Capture, flag: str) -> None:
    assert explain.run([flag], {}) == 0
    out = capsys.readouterr().out
    assert "explain URL... [FLAGS]" in out
    assert "--json" in out
    assert "--excluded-urls" in out
