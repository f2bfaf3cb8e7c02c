"""How a policy is served, and what of it contradicts itself."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from gtp_vision.core.errors import GtpVisionError

_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Settings:
    """How a policy is served.

    Attributes:
        host: address to listen at.
        port: 0 is any that is free.
        token: what clients must show; None lets in everybody.
        open: listen to other machines without a token.
        certificate: PEM file for TLS, and `key`, its private key; None is without.
        key: see there.
        answer: `chunk`, the plan (H, A) of every observation, or `action`, (1, A) by the policy's own way of executing
            chunks.
        steps: K; None is the policy's.
        seed: of a robot's noise, unless it asks for another.
        renamed: the client's key to the policy's name.
        ignored: the client's keys that are passed over; `*` is all that the policy does not know.
        clients: connections at once.
        queue: observations of one client that may wait.
        timeout: seconds for an answer.
        idle: seconds without a message after which a client is sent away.
        threads: CPU threads of the policy; None is PyTorch's choice.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    open: bool = False
    certificate: Path | None = None
    key: Path | None = None
    answer: str = "chunk"
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
    """Refuse settings that contradict each other.

    Raises:
        GtpVisionError: which, and what to do.
    """
    if settings.answer not in ("chunk", "action"):
        raise GtpVisionError(f"--answer {settings.answer} must be chunk or action")
    for name, least in (("clients", 1), ("queue", 1), ("timeout", 0.001), ("idle", 0.1), ("port", 0), ("seed", 0)):
        if not getattr(settings, name) >= least:
            raise GtpVisionError(f"--{name} {getattr(settings, name)} must be at least {least}")
    if settings.threads is not None and settings.threads < 1:
        raise GtpVisionError(f"--threads {settings.threads} must be at least 1")
    if (settings.certificate is None) != (settings.key is None):
        raise GtpVisionError("--tls-cert and --tls-key belong together; give both, or none")
    if settings.token is not None and not (
        len(settings.token) >= _SHORTEST_TOKEN and settings.token.isascii() and settings.token.isprintable()
    ):
        raise GtpVisionError(
            f"the token must be {_SHORTEST_TOKEN} or more printable characters; make one with: openssl rand -hex 32"
        )
    if settings.token is None and not settings.open and not _is_loopback(settings.host):
        raise GtpVisionError(
            f"--host {settings.host} lets in other machines, and there is no token; give --token-file, or --open if "
            f"everybody who can reach it may move the robot"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def encryption(settings: Settings) -> ssl.SSLContext | None:
    """For TLS; None is without.

    Raises:
        GtpVisionError: certificate and key are none, or do not belong together.
    """
    if settings.certificate is None or settings.key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.certificate, settings.key, password="")  # asks nobody
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise GtpVisionError(
            f"{settings.certificate} and {settings.key} are no certificate and key in PEM format that belong together "
            f"({reason(error)})"
        ) from error
    return context


def reason(error: Exception) -> str:
    """Why something of the system failed, in a line."""
    return (str(getattr(error, "strerror", None) or error).splitlines() or [type(error).__name__])[0][:200]
