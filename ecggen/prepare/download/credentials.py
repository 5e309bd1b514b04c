"""User name and password for restricted databases: from the environment or a netrc, never shown."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import netrc
import os
import socket
from pathlib import Path

from ecggen.prepare.download.connection import Origin
from ecggen.prepare.download.source import SourceError

USERNAME, PASSWORD = "PHYSIONET_USERNAME", "PHYSIONET_PASSWORD"
HOW = (
    f"set {USERNAME} and {PASSWORD} in the environment, or give the host an entry in ~/.netrc "
    "(machine, login, password)"
)


class Login:
    """Credentials of one origin. Neither repr nor str shows them."""

    __slots__ = ("_header", "came_from", "origin")

    def __init__(self, origin: Origin, username: str, password: str, came_from: str) -> None:
        self.origin, self.came_from = origin, came_from
        self._header = "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode("ascii")

    def header(self, origin: Origin) -> dict[str, str]:
        """For a request to `origin`: empty unless it is the login's own."""
        return {"Authorization": self._header} if origin == self.origin else {}

    def __repr__(self) -> str:
        return f"Login({self.origin}, from {self.came_from})"


def find_login(origin: Origin) -> Login | None:
    """The login for an origin, None if there is none or the way there is open to readers.

    The environment's pair is meant for PhysioNet, so it goes to physionet.org and to this machine alone;
    a netrc names its hosts itself ($NETRC, else ~/.netrc). Raises SourceError for one that cannot be read.
    """
    if origin.scheme != "https" and not is_local(origin.host):
        return None
    username, password = os.environ.get(USERNAME), os.environ.get(PASSWORD)
    ours = origin.host == "physionet.org" or origin.host.endswith(".physionet.org") or is_local(origin.host)
    if username and password and ours:
        return Login(origin, username, password, "the environment")
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    if not path.is_file():
        return None
    try:
        # Without a name, the default one, Python also checks that nobody else may read it.
        found = netrc.netrc(os.environ.get("NETRC") or None).authenticators(origin.host)
    except (netrc.NetrcParseError, UnicodeDecodeError, OSError):  # their words may quote the file
        raise SourceError(f"{path} cannot be read as a netrc file: check its form and its mode.") from None
    return Login(origin, found[0], found[2] or "", str(path)) if found else None


def is_local(host: str) -> bool:
    """Whether a host is this machine's loopback, by its name or address alone."""
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def is_private(host: str) -> bool:
    """Whether a host is given as an address that is not on the public internet."""
    address = _address(host)
    return host.rstrip(".") == "localhost" or (address is not None and not address.is_global)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    with contextlib.suppress(OSError):  # 127.1, 0x7f000001, 2130706433: the resolver takes them as well
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None
