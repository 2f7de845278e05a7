"""TLS of a service: its certificate and key, and for mutual TLS the authorities that sign its clients' certificates."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfoldkit.errors import UnfoldError, user_error


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files of a service.

    Args:
        certificate: The certificate chain, leaf first.
        key: The private key, without a passphrase.
        client_ca: Authorities of clients; with it, clients need a certificate (mutual TLS).
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def build_context(self, protocol: str = "http/1.1") -> ssl.SSLContext:
        """Build the context of a server: TLS 1.2 or later, and one protocol by its name in ALPN.

        Raises:
            UnfoldError: A file is missing, is no PEM, needs a passphrase, or key and certificate do not match.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([protocol])
        self.load_into(context)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            with_errors(self.client_ca, lambda: context.load_verify_locations(str(self.client_ca)))
        return context

    def build_grpc_credentials(self) -> Any:
        """Build the credentials of a gRPC server, which read changed files again at the next handshake."""
        import grpc

        def read() -> Any:
            pair = [(self.key.read_bytes(), self.certificate.read_bytes())]
            authorities = self.client_ca.read_bytes() if self.client_ca else None
            return grpc.ssl_server_certificate_configuration(pair, authorities)

        stored = [self._modified(), read()]

        def read_changed() -> Any:
            modified = self._modified()
            if modified == stored[0]:
                return None
            try:
                self.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            except UnfoldError:
                # half-way through a renewal; the handshake uses the previous files
                return None
            stored[:] = [modified, read()]
            return stored[1]

        needs_client = self.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(stored[1], read_changed, require_client_authentication=needs_client)

    def _modified(self) -> tuple[int, ...]:
        paths = (self.certificate, self.key, *((self.client_ca,) if self.client_ca else ()))
        return tuple(path.stat().st_mtime_ns for path in paths if path.exists())

    def load_into(self, context: ssl.SSLContext) -> None:
        """Load certificate and key into a context; later handshakes use them.

        Raises:
            UnfoldError: See ``build_context``.
        """
        # a context that failed half-way keeps a certificate without its key, so a scratch one is tried first
        for target in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            self._load_pair(target)

    def _load_pair(self, context: ssl.SSLContext) -> None:
        with_errors(self.certificate, lambda: context.load_cert_chain(self.certificate, self.key, _refuse_passphrase))


def reload_certificate(files: TlsFiles, contexts: Iterable[ssl.SSLContext], notify: Callable[[str], object]) -> None:
    """Load changed files into the contexts of a running server; what is wrong with them leaves them as they were."""
    try:
        for context in contexts:
            files.load_into(context)
    except UnfoldError as error:
        notify(f"the certificate was not reloaded: {error}")
    else:
        notify(f"the certificate was reloaded from {files.certificate}")


def with_errors(file: Path, load: Callable[[], object]) -> None:
    """Call ``load``, and blame ``file`` for its failure.

    Raises:
        UnfoldError: It failed.
    """
    try:
        load()
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        hint = "PEM files with the key of the certificate"
        raise user_error(f"cannot be used for TLS: {reason}", file=str(file), hint=hint) from error
    except OSError as error:
        raise user_error(f"cannot be used for TLS: {error.strerror}", file=str(error.filename or file)) from error
    except ValueError as error:
        raise user_error(f"cannot be used for TLS: {error}", file=str(file)) from error


def _refuse_passphrase() -> str:
    # OpenSSL would wait for one on the terminal
    raise ValueError("its key needs a passphrase; openssl pkey writes one without")
