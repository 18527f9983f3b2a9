"""
Refuses every connection beyond this machine, in the process of the tests and in each Python process that they start.

Python imports a module of this name at its start, from the folders in `PYTHONPATH`. What is refused is also written to
the file `REFUSED`, since libraries swallow the error of a counter that they cannot reach.
"""

import ipaddress
import os
import socket
import sys


REFUSED = "TRL_REAL_TEST_REFUSED"
EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
OWN_NAMES = {"", "localhost", socket.gethostname().lower()}


def is_here(host) -> bool:
    """Return whether a host name or address, as `socket` takes it, is this machine."""
    if host is None:
        return True
    name = (host.decode() if isinstance(host, bytes) else str(host)).lower().partition("%")[0]
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in OWN_NAMES or name.endswith(".127.0.0.1")  # a service beside the Hub of a test
    return address.is_loopback or address.is_unspecified


def refuse(event: str, arguments: tuple) -> None:
    if event not in EVENTS:
        return
    place = arguments[1] if event in ("socket.connect", "socket.sendto", "socket.sendmsg") else arguments[0]
    host = place[0] if isinstance(place, tuple) else None if event.startswith("socket.send") else place
    if event == "socket.connect" and not isinstance(place, tuple):
        return  # the path of a Unix socket
    if not is_here(host):
        if os.environ.get(REFUSED):
            with open(os.environ[REFUSED], "a", encoding="utf-8") as file:
                file.write(f"{event} {host} in {' '.join(sys.argv)[:200]}\n")
        raise ConnectionRefusedError(f"Tests may not reach {host!r}: {event}")


if os.environ.get(REFUSED):
    sys.addaudithook(refuse)
