"""TCP ports of the servers that a command starts."""

from __future__ import annotations

import errno
import socket

from project.errors import InputError


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket, before anything is loaded, so that a port in use is known at once.

    Raises:
        InputError: it is in use, or no port or host.
    """
    if not 0 < port < 65536:
        raise InputError(f"--port is {port}; give a number from 1 to 65535")
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except (OSError, UnicodeError) as error:
        if listener:
            listener.close()
        raise cannot_listen(host, port, error) from error
    return listener


def cannot_listen(host: str, port: int, error: OSError | UnicodeError) -> InputError:
    """Return why a server cannot take a port."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return InputError(f"port {port} on {host} is in use; stop what listens there or give another --port")
    return InputError(f"cannot listen on {host}, port {port} ({error}); give another --host or --port")
