"""Why the project could not be reached, in words; above all when a certificate is the cause."""

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.failure import Failure

#: OpenSSL's results of a verification (x509_vfy.h)
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64
_TRY: Final = "then try again"


def failure(url: str, error: BaseException, fix: str) -> Failure:
    """The failure (TC615) of a call to `url`; `fix`: what to do unless the cause is a certificate."""
    found = _certificate(error)
    if found is None:
        return Failure(f"{url} does not answer ({type(error).__name__})", fix, code="TC615")
    what, how = _about_certificate(found)
    return Failure(f"{url} cannot be trusted: {what}", how, code="TC615")


def reason(error: BaseException) -> str:
    """The same for a log: the error, and what to do about a certificate."""
    text = f"{type(error).__name__}: {error}"
    found = _certificate(error)
    return text if found is None else "{} → {}".format(*_about_certificate(found))


def _certificate(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """OpenSSL's own error. aiohttp's is of the same class, but knows no code."""
    found = [one for one in _chain(error) if isinstance(one, ssl.SSLCertVerificationError)]
    return next((one for one in found if hasattr(one, "verify_code")), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it; HTTP clients keep the cause in different places."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = [
            one.__cause__,
            one.__context__,
            getattr(one, "certificate_error", None),
            getattr(one, "os_error", None),
        ]
        waiting += [cause for cause in inner if isinstance(cause, BaseException)]


def _about_certificate(error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    """What is wrong with the certificate, and what to do."""
    said = error.verify_message or str(error)
    match error.verify_code:
        case code if code in (_NOT_YET_VALID, _EXPIRED):
            return (
                f"its certificate is not valid at this machine's time ({said})",
                f"set this machine's clock, or have the certificate renewed, {_TRY}",
            )
        case code if code in (_OTHER_NAME, _OTHER_ADDRESS):
            return (
                f"its certificate belongs to another name ({said})",
                f"check the address, and whether a proxy answers in its place, {_TRY}",
            )
    what = f"its certificate is signed by an authority that is unknown here, such as a company's proxy ({said})"
    chosen = os.environ.get("SSL_CERT_FILE")
    if chosen and not Path(chosen).is_file():
        return what, f"SSL_CERT_FILE names {chosen}, which is no file: set it to a file of authorities, {_TRY}"
    return what, f"set SSL_CERT_FILE to a file that contains that authority beside the usual ones, {_TRY}"
