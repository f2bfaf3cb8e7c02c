"""Settings of the server, and their checks."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from gtp_vision.core.errors import GtpVisionError, reason
from gtp_vision.serving.answer import ACTION, PLAN

_MIN_TOKEN = 16


@dataclass(frozen=True)
class Settings:
    """Settings of `Server`.

    Attributes:
        host: address to listen on.
        port: 0 is any free one.
        token: what clients must send; None admits everybody.
        open: listen to other machines without a token.
        certificate: PEM file for TLS; None is without TLS.
        key: PEM file of the certificate's private key.
        answer: `answer.PLAN` or `answer.ACTION`.
        steps: K; None is the policy's.
        seed: of a client's noise, unless it sends one.
        renamed: the client's key to the policy's name.
        ignored: the client's keys that are ignored; `*` is all that the policy does not know.
        clients: connections at once.
        queue: observations of one client that may wait.
        timeout: seconds for an answer.
        idle: seconds without a message after which a client is disconnected.
        threads: CPU threads of the policy; None is PyTorch's choice.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    open: bool = False
    certificate: Path | None = None
    key: Path | None = None
    answer: str = PLAN
    steps: int | None = None
    seed: int = 0
    renamed: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    clients: int = 16
    queue: int = 1
    timeout: float = 10.0
    idle: float = 600.0
    threads: int | None = None


def check(settings: Settings) -> None:
    """Refuse settings that are out of range or contradict each other."""
    if settings.answer not in (PLAN, ACTION):
        raise GtpVisionError(f"--answer {settings.answer} must be chunk or action")
    for name, least in (("clients", 1), ("queue", 1), ("timeout", 0.001), ("idle", 0.1), ("port", 0), ("seed", 0)):
        if not getattr(settings, name) >= least:
            raise GtpVisionError(f"--{name} {getattr(settings, name)} must be at least {least}")
    if settings.threads is not None and settings.threads < 1:
        raise GtpVisionError(f"--threads {settings.threads} must be at least 1")
    if (settings.certificate is None) != (settings.key is None):
        raise GtpVisionError("--tls-cert and --tls-key belong together; give both or none")
    if settings.token is not None and not (
        len(settings.token) >= _MIN_TOKEN and settings.token.isascii() and settings.token.isprintable()
    ):
        raise GtpVisionError(
            f"the token must have {_MIN_TOKEN} or more printable ASCII characters; make one: openssl rand -hex 32"
        )
    if settings.token is None and not settings.open and not _is_loopback(settings.host):
        raise GtpVisionError(
            f"--host {settings.host} admits other machines without a token; give --token-file, or --open if everybody "
            f"who can reach it may move the robot"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def encryption(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context; None without a certificate.

    Raises:
        GtpVisionError: certificate and key cannot be read, or do not belong together.
    """
    if settings.certificate is None or settings.key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.certificate, settings.key, password="")  # does not prompt
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise GtpVisionError(
            f"{settings.certificate} and {settings.key} cannot be loaded as a certificate and its key "
            f"({reason(error)}); give the two PEM files that belong together"
        ) from error
    return context
