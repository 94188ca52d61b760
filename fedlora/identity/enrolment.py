"""How a client gets certificates and is let in: the steps in the one right order."""

from dataclasses import dataclass

from fedlora.errors import IdentityError
from fedlora.identity.authority import Authority
from fedlora.identity.keys import certificate_facts
from fedlora.identity.registry import Registry
from fedlora.identity.requests import checked_public_key, key_sha256


@dataclass(frozen=True)
class Issued:
    """What a client is given: its name, its certificate (PEM), and the authority's (PEM)."""

    name: str
    certificate: bytes
    authority: bytes


def join(
    registry: Registry, authority: Authority, secret: str, signing_request: bytes, name_hint: str | None = None
) -> Issued:
    """The first certificate of whoever has the secret of a token. A request that is refused uses no token up.

    Whoever did not get the reply may ask again with the same key, until a certificate that came of it is used.

    Raises IdentityError for a request or a token that is refused.
    """
    key = key_sha256(checked_public_key(signing_request))
    authority.check_alive()
    name = registry.redeem(secret, name_hint, key=key)
    return _issue(registry, authority, name, signing_request, renews=None)


def renew(
    registry: Registry, authority: Authority, name: str, certificate_sha256: str, signing_request: bytes
) -> Issued:
    """A new certificate for a client that is connected with a valid one, which holds until the new one is used.

    name, certificate_sha256: as TLS has verified them. Raises IdentityError if the client may not connect (any more),
    or for a request that is refused.
    """
    registry.admit(name, certificate_sha256)
    return _issue(registry, authority, name, signing_request, renews=certificate_sha256)


def admit(registry: Registry, name: str, certificate: bytes) -> None:
    """Returns if a client that connects as `name` may, with that certificate (PEM), which TLS has verified.

    Raises IdentityError with the reason if it may not.
    """
    facts = certificate_facts(certificate)
    if not facts.is_client or facts.name != name:
        raise IdentityError(
            f"{name[:80]!r} shows a certificate of {facts.name[:80]!r} that is not for a client so named"
        )
    registry.admit(name, facts.sha256)


def _issue(registry: Registry, authority: Authority, name: str, request: bytes, *, renews: str | None) -> Issued:
    certificate = authority.sign_client(request, name)
    registry.record_certificate(name, certificate_facts(certificate), renews=renews)
    return Issued(name, certificate, authority.certificate)
