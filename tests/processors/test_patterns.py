import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.processors.patterns import DEFAULT_EXCLUDED, Pattern, PatternSet, UrlRules, check, split


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("", ()),
        (" , ,", ()),
        ("/health", ("/health",)),
        ("/a, /b ,/c", ("/a", "/b", "/c")),
        (r"/a\,b,/c", ("/a,b", "/c")),
        (r"^/a{1\,3}$,/b", ("^/a{1,3}$", "/b")),
        (r"^/a\.b\d", (r"^/a\.b\d",)),
        ("/a b", ("/a b",)),
    ],
)
def test_splits_at_commas_that_are_not_escaped(text: str, patterns: tuple[str, ...]) -> None:
    assert split(text) == patterns


@given(st.lists(st.text("/a.*^,b", min_size=1).filter(lambda p: p.strip() == p)))
def test_splits_what_was_joined(patterns: list[str]) -> None:
    assert split(",".join(p.replace(",", r"\,") for p in patterns)) == tuple(patterns)


# pattern, paths that it matches, paths that it does not
TABLE = [
    ("/health", ["/health"], ["/api/v1/health", "/healthz", "/health/", "/Health", "/", ""]),
    ("/", ["/"], ["/api", "//", "/index.html"]),
    ("/a.c", ["/a.c"], ["/abc", "/a.cd"]),
    ("/api/*", ["/api/", "/api/users", "/api/v1/x"], ["/api", "/apis", "/v/api/x"]),
    ("/a.*", ["/a.", "/a.b"], ["/ab", "/a"]),
    ("*", ["/", "/a", ""], []),
    ("/a*b", ["/a*b"], ["/ab", "/axb"]),
    ("/a,b", ["/a,b"], ["/a", "b"]),
    ("/a+b?", ["/a+b?"], ["/aab"]),
    ("^/a", ["/a", "/abc"], ["/b/a", "a"]),
    ("^/a$", ["/a"], ["/ab", "/a\n"]),
    ("^/a|/b", ["/a", "/b", "/bc"], ["/c/b"]),
    ("^/api/v[0-9]+/health$", ["/api/v1/health", "/api/v22/health"], ["/api/v/health", "/health"]),
    ("^/x{1,3}$", ["/x", "/xxx"], ["/", "/xxxx"]),
    ("^(?i)/h", ["/H", "/h"], ["/x"]),
    ("^/é.$", ["/éa", "/éß"], ["/é"]),
    ("^/api/*", ["/api", "/api/", "/apix"], ["/ap"]),
]


@pytest.mark.parametrize(("pattern", "matching", "others"), TABLE)
def test_pattern_table(pattern: str, matching: list[str], others: list[str]) -> None:
    for patterns in (Pattern(pattern), PatternSet(["/other", pattern])):
        assert [p for p in matching if not patterns.matches(p.encode())] == []
        assert [p for p in others if patterns.matches(p.encode())] == []


@pytest.mark.parametrize(("pattern", "matching", "others"), TABLE)
def test_a_needle_stands_in_all_that_matches(
    pattern: str, matching: list[str], others: list[str]
) -> None:
    needle = Pattern(pattern).needle
    assert all(needle in path.encode() for path in matching)


@pytest.mark.parametrize(
    ("expression", "needle"),
    [
        ("^/health", b"/health"),
        ("^/health$", b"/health"),
        (r"^/api/openapi\.json$", b"/api/openapi.json"),
        ("^/a.b", b"/a"),
        ("^/ab*", b"/a"),
        ("^/ab?c", b"/a"),
        ("^/ab{0}", b"/a"),
        (r"^/a\.?b", b"/a"),
        ("^/ab+", b"/ab"),
        ("^/a(b|c)", b""),
        ("^/a|b", b""),
        ("^(?i)/a", b""),
        (r"^/\d", b"/"),
        (r"^/a\Q*\E", b""),
        ("^", b""),
    ],
)
def test_the_needle_of_an_expression_is_its_plain_beginning(expression: str, needle: bytes) -> None:
    assert Pattern(expression).needle == needle


@given(st.text(r"/ab.*+?{}()[]|\$^12,d", max_size=8), st.text("/ab.*1", max_size=6))
def test_whatever_an_expression_matches_its_needle_is_in(expression: str, path: str) -> None:
    if check("^" + expression) is None:
        pattern = Pattern("^" + expression)
        if pattern.matches(path.encode()):
            assert pattern.needle in path.encode()


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("^/a(", "missing )"),
        ("^/(?=x)", "invalid perl operator"),
        ("^/a{2000}", "invalid repetition size"),
        (r"^/(a)\1", "invalid escape sequence"),
    ],
)
def test_check_says_what_is_wrong_with_an_expression(pattern: str, reason: str) -> None:
    assert reason in (check(pattern) or "")
    with pytest.raises(ValueError, match="not an RE2 expression"):
        Pattern(pattern)


@pytest.mark.parametrize("pattern", [*DEFAULT_EXCLUDED, "/a(", "*", "(", "^/a|b", "/é"])
def test_check_has_nothing_to_say_about_others(pattern: str) -> None:
    assert check(pattern) is None


def test_the_end_of_an_expression_is_the_end_of_the_path() -> None:
    assert Pattern("^/.*health$").matches(b"/api/health")
    assert not Pattern("^/.*health$").matches(b"/api/health\n")


def test_an_expression_takes_linear_time_on_hostile_paths() -> None:
    # A backtracking engine would need longer than the universe has had for these.
    assert not Pattern("^/(a+)+$").matches(b"/" + b"a" * 100_000 + b"!")
    assert Pattern("^(/|/.*)*x").matches(b"/" * 10_000 + b"x")


def test_paths_that_are_no_text_match_by_their_bytes() -> None:
    assert Pattern("/\udcff").matches(b"/\xff")
    assert Pattern("/a*").matches(b"/a\xff")
    assert not Pattern("^/.$").matches(b"/\xff")


def test_a_whitelist_alone_decides() -> None:
    rules = UrlRules(["/api/*", "/health"], ["/api/*"])
    assert rules.decide(b"/api/x") == (True, "included", "/api/*")
    assert rules.decide(b"/health") == (False, "included", None)
    assert rules.decide(b"/other") == (False, "included", None)
    assert [rules.traced(path) for path in (b"/api/x", b"/health", b"/other")] == [
        True,
        False,
        False,
    ]


def test_exclusions_decide_without_one() -> None:
    rules = UrlRules(["/a*", "/ab", "^/c"], None)
    assert rules.decide(b"/ab") == (False, "excluded", "/a*")
    assert rules.decide(b"/cd") == (False, "excluded", "^/c")
    assert rules.decide(b"/x") == (True, None, None)
    assert UrlRules([], None).decide(b"/health") == (True, None, None)


def test_the_defaults_are_exact() -> None:
    rules = UrlRules(DEFAULT_EXCLUDED, None)
    assert not any(rules.traced(path.encode()) for path in DEFAULT_EXCLUDED)
    for path in ("/api/v1/health", "/healthcheck", "/health/live", "/metrics/x", "/api/docs2", "/"):
        assert rules.traced(path.encode()), path


def test_re2_is_loaded_for_expressions_only() -> None:
    code = (
        "import sys; from relay.processors.patterns import *\n"
        "PatternSet([*DEFAULT_EXCLUDED, '/api/*']); assert 're2' not in sys.modules\n"
        "PatternSet(['^/a']); assert 're2' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
