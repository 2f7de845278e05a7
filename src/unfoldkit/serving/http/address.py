"""Where a service listens: loopback without a token, any address with one, which TLS keeps secret in transit."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass

from unfoldkit.errors import user_error

BACKLOG = 2048
_PORT_ERRORS = (errno.EADDRINUSE, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a service listens. A ``host`` that other machines can reach needs a ``token`` or certificates of clients.

    Args:
        host: The address to listen on.
        port: The port; 0 for a free one.
        token: The bearer token of the service; empty for none.
        is_encrypted: The service speaks TLS.
        knows_clients: Clients need a certificate.
        is_insecure: A token may cross the network in plain text, for example to a proxy that ends TLS.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str = ""
    is_encrypted: bool = False
    knows_clients: bool = False
    is_insecure: bool = False

    @property
    def url(self) -> str:
        """The beginning of the URLs of the service."""
        return f"{'https' if self.is_encrypted else 'http'}://{self.place}"

    @property
    def place(self) -> str:
        """Host and port as they stand in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def open_listener(address: Address, *, many: bool = False) -> socket.socket:
    """Open a listening socket.

    Args:
        address: Where to listen.
        many: Share the port with other processes (SO_REUSEPORT).

    Raises:
        UnfoldError: Other machines can reach the address and there is no token, or it cannot be bound.
    """
    listener = bind_socket(address, many=many)
    # from here on clients wait instead of failing: the address is announced before the service is ready
    listener.listen(BACKLOG)
    return listener


def bind_socket(address: Address, *, many: bool = False) -> socket.socket:
    """Bind a socket to the address without listening on it.

    Raises:
        UnfoldError: See :func:`open_listener`.
    """
    _check(address)
    bound = socket.socket(_family(address), socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if many:
        # the kernel distributes new connections over the processes
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((address.host, address.port))
    except OSError as error:
        bound.close()
        is_port_error = error.errno in _PORT_ERRORS
        hint = "--port 0 takes a free one" if is_port_error else "--host takes an address of this machine"
        raise user_error(f"cannot listen on {address.place}: {error.strerror}", hint=hint) from error
    return bound


def is_listening(address: Address) -> bool:
    """Whether a service listens on the address already; with several processes, both would share its clients.

    Raises:
        UnfoldError: See :func:`open_listener`.
    """
    _check(address)
    with socket.socket(_family(address)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address.host else socket.AF_INET


def _check(address: Address) -> None:
    try:
        address.host.encode("idna")
    except UnicodeError as error:
        raise user_error(
            f"--host {address.host}: not a host name", hint="such as 127.0.0.1, ::1 or localhost"
        ) from error
    is_public = not is_loopback(address.host)
    if is_public and not address.token and not address.knows_clients:
        raise user_error(
            f"{address.host} can be reached from other machines, so a token is needed",
            hint="set UNFOLD_TOKEN, or leave --host out",
        )
    if is_public and address.token and not address.is_encrypted and not address.is_insecure:
        raise user_error(
            f"the token would cross the network in plain text on {address.host}",
            hint="--tls-cert and --tls-key, or --insecure where a proxy or a mesh encrypts",
        )
    if not (address.token.isascii() and address.token.isprintable()):
        # clients encode other characters in different ways, and gRPC sends none
        message = "the token holds characters that not every client can send in a header"
        raise user_error(message, hint="UNFOLD_TOKEN is one line of ASCII, such as from `openssl rand -hex 32`")
