"""Where a server listens; imports nothing heavy, so that a mistake is known before a model is loaded."""

from __future__ import annotations

import socket

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that only the same machine reaches."""


def check_address(host: str, port: int, keys: tuple[str, ...]) -> None:
    """Refuse an address that cannot be, or that strangers reach without a key.

    Raises:
        ValueError: It is one of these.
    """
    if not 0 <= port < 1 << 16:
        raise ValueError(f"port={port}: expected 0 to 65535; 0 takes one that is free")
    if host not in LOOPBACK and not keys:
        raise ValueError(
            f"host={host}: other machines reach it, and the server asks for no key\n"
            "set the environment variable VISUALCHAT_API_KEYS, or api_keys=, or leave host at 127.0.0.1"
        )


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, on which nothing is accepted yet.

    Raises:
        ValueError: The address is taken, or not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except BaseException:
            found.close()
            raise
        return found
    except OSError as error:
        raise ValueError(
            f"host={host} port={port}: {error.strerror or error}; name another port, or port=0 for one that is free"
        ) from error
