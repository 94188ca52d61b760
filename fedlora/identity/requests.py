"""Requests for certificates: the one thing here that strangers send."""

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedlora.errors import IdentityError
from fedlora.identity.keys import PARSING_ERRORS, accepted_curve

LARGEST = 8 * 1024
"""Bytes that a request may have; ours have about 450."""

_REMEDY = "make the request with fedlora (`signing_request`), or with an EC key on P-256 or P-384 and SHA-256"


def checked_public_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The public key that `request` (PKCS #10, PEM) asks to certify; all else that it asks for is ignored.

    Raises IdentityError if it is too large or cannot be read, if its signature does not show that the sender has the
    private key, or if the key is of a kind that the TLS library of gRPC refuses.
    """
    if len(request) > LARGEST:
        raise IdentityError(f"a request for a certificate has {len(request):,} bytes; at most {LARGEST:,} are read")
    try:
        parsed = x509.load_pem_x509_csr(request)
        key, valid = parsed.public_key(), _proven(parsed)
    except PARSING_ERRORS as error:
        raise IdentityError(f"a request for a certificate cannot be read ({error}): {_REMEDY}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not accepted_curve(key.curve):
        raise IdentityError(f"a request for a certificate has a key of another kind than is accepted: {_REMEDY}")
    if not valid:
        raise IdentityError(
            "a request for a certificate is not signed by the key that it asks for, or with a weak hash: it was"
            f" damaged, or its sender does not have the key; {_REMEDY}"
        )
    return key


def key_sha256(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key (its SubjectPublicKeyInfo), hexadecimal."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _proven(request: x509.CertificateSigningRequest) -> bool:
    strong = isinstance(request.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512)
    return strong and request.is_signature_valid
