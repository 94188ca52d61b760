"""A running server's certificate, taken up anew when its file changes: renewing needs no restart."""

from pathlib import Path
from typing import Any

import grpc

from fedlora.identity.keys import read_certificate, read_private
from fedlora.identity.tls import ServerFiles


def server_credentials(files: ServerFiles, *, clients_show_theirs: bool) -> Any:
    """Credentials for a gRPC port of the server whose files these are.

    clients_show_theirs: only clients with a certificate of the server's authority are let in (mutual TLS).
    Raises IdentityError or StoreError if the files cannot be used now.
    """
    watched = _Watched(files)
    return grpc.dynamic_ssl_server_credentials(watched.current(), watched.changed, clients_show_theirs)


class _Watched:
    """Key and certificate, read again when the certificate's file is another."""

    def __init__(self, files: ServerFiles) -> None:
        self._files = files
        self._stamp = _stamp(files.certificate)

    def current(self) -> Any:
        files = self._files
        pair = (read_private(files.key), read_certificate(files.certificate))
        return grpc.ssl_server_certificate_configuration([pair], read_certificate(files.authority_certificate))

    def changed(self) -> Any:
        """Called at each handshake; None: nothing new."""
        stamp = _stamp(self._files.certificate)
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        return self.current()


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ino
