"""Proxies of the environment (`http_proxy`, `https_proxy`, `all_proxy`) that would break what a command sends."""

from __future__ import annotations

import ipaddress
import urllib.request
from importlib.util import find_spec
from urllib.parse import urlsplit

from common.errors import UserError

HTTP_SCHEMES = ("http", "https")
SOCKS_SCHEMES = ("socks5", "socks5h")


def check_proxies(url: str, key: str) -> None:
    """Refuse proxies that the client of `url` cannot use, and those that would catch what is for this machine.

    Args:
        url: where requests go.
        key: the config key that holds the URL, for the message.

    Raises:
        UserError: names the variable. Proxies may hold passwords, so their addresses are not repeated.
    """
    # The client opens every proxy that is set, also those that this URL does not need.
    for scheme, proxy in urllib.request.getproxies().items():
        if scheme in ("http", "https", "all"):
            _check_usable(f"{scheme}_proxy", proxy)
    check_loopback(url, key)


def check_loopback(url: str, key: str) -> None:
    """Refuse (UserError) a proxy that would catch requests to this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not _is_this_machine(host) or urllib.request.proxy_bypass(host):
        return
    proxies = urllib.request.getproxies()
    for name in (parts.scheme, "all"):
        if proxies.get(name):
            raise UserError(
                f"{name}_proxy: expected requests to {host} ({key}) to stay on this machine, got a proxy in the "
                f"environment that would catch them; set no_proxy={host}, or unset {name}_proxy"
            )


def _check_usable(name: str, proxy: str) -> None:
    scheme = urlsplit(proxy).scheme.lower() if "://" in proxy else "http"
    if scheme in HTTP_SCHEMES:
        return
    if scheme not in SOCKS_SCHEMES:
        raise UserError(
            f"{name}: expected a proxy of http, https or socks5, got one of {scheme}; unset it or give another"
        )
    if find_spec("socksio") is None:
        raise UserError(
            f"{name}: expected the package socksio for a proxy of {scheme}, got none; "
            f"run `.venv/bin/python -m pip install socksio`, or unset {name}"
        )


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
