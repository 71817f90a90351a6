"""Proxies of the environment: what would break a command is said before it starts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from cluster import generate
from cluster.runtime import proxies
from cluster.runtime.proxies import check_loopback, check_proxies
from common.errors import UserError

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_must_not_catch_what_is_for_this_machine(
    name: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "http://user:secret@proxy.example:3128")
    url = f"http://{host}:8000/v1"
    with pytest.raises(UserError) as error:
        check_proxies(url, "--endpoint")
    line = str(error.value)
    assert line.startswith(f"{name.lower()}: expected requests to")
    assert f"set no_proxy={host.strip('[]')}" in line
    assert "secret" not in line and "\n" not in line
    monkeypatch.setenv("no_proxy", host.strip("[]"))
    check_proxies(url, "--endpoint")


def test_a_proxy_may_have_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    check_proxies("http://models.example/v1", "--endpoint")
    # Not the proxy of this scheme.
    check_proxies("https://127.0.0.1/v1", "--endpoint")
    check_loopback("http://10.0.0.7:8000/v1", "--endpoint")


def test_a_socks_proxy_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a URL that it would not serve: the client opens all of them."""
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1080")
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setattr(proxies, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="all_proxy: expected the package socksio"):
        check_proxies("http://localhost:8000/v1", "--endpoint")
    monkeypatch.setattr(proxies, "find_spec", lambda name: object())
    check_proxies("http://localhost:8000/v1", "--endpoint")
    monkeypatch.setenv("all_proxy", "socks4://127.0.0.1:1080")
    with pytest.raises(
        UserError, match=r"all_proxy: expected a proxy of http, .*socks4"
    ):
        check_proxies("http://localhost:8000/v1", "--endpoint")


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("http://127.0.0.1:9", "expected requests to localhost (--endpoint) to stay"),
        pytest.param(
            "socks5://127.0.0.1:9",
            "expected the package socksio",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("socksio") is not None,
                reason="the package is installed",
            ),
        ),
    ],
)
def test_generate_says_it_in_one_line(
    proxy: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    words = ["povid", "--endpoint", "http://localhost:9/v1", "--model-name", "m"]
    assert generate.main([*words, "--count", "1", "--out", f"{tmp_path}/x"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: all_proxy: ") and said in err
    assert err.count("\n") == 1
