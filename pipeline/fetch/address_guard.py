"""Network addresses that ingestion may connect to, checked on the address of each socket, for every redirect.

Checking names is no protection: a name may resolve to a private address, and to a different one the second time. So the guard
sits where the socket is created, after all resolving, and covers IP literals, redirects and DNS rebinding alike.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

from pipeline.errors import InputError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Written out, since `ipaddress.is_global` is True for multicast, NAT64 and 6to4 addresses.
_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, cloud metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo: embeds IPv4
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: embeds IPv4
        "3fff::/20",  # documentation
    )
)

REFUSED = "address refused"
"""Text of the error, by which a caller recognises a refusal that the HTTP client has wrapped."""


class AddressRefusedError(OSError):
    """The address is not public, and not allowed by `ingest.fetch.allow_addresses`."""


def parse_networks(networks: Sequence[str]) -> tuple[Network, ...]:
    """Parses `ingest.fetch.allow_addresses`. Raises InputError."""
    try:
        return tuple(ipaddress.ip_network(network) for network in networks)
    except ValueError as error:
        raise InputError(f"ingest.fetch.allow_addresses: {error}; write networks as 127.0.0.1/32") from None


def is_refused(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """True if an address is neither public nor allowed."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in allowed if network.version == address.version):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return any(address in network for network in _REFUSED_V4)
    return address not in _PUBLIC_V6 or any(address in network for network in _REFUSED_V6)


class GuardedSocketFactory:
    """Creates the sockets of aiohttp's connector; called with the address that it is about to connect to."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        self.allowed = tuple(allowed)

    def __call__(self, info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, target = info
        host = str(target[0]).partition("%")[0]
        if is_refused(ipaddress.ip_address(host), self.allowed):
            raise AddressRefusedError(errno.EACCES, f"{REFUSED}: {host} is not a public address")
        return socket.socket(family=family, type=kind, proto=protocol)
