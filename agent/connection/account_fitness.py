"""Faults of this VPS that affect one account only: the database then places the account on another VPS."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Final, Literal

from agent.clock import boot_time
from agent.control_plane.contract import ACCOUNT_REFUSALS, ATTEMPTS_USED_UP, CLAIMED, LEASE_OVER
from agent.control_plane.json_fields import WireError
from agent.control_plane.retry import Refused
from agent.platforms.factory import UnknownPlatform

#: explained in docs/errors.md, Unfit
Reason = Literal["platform_missing", "credentials_unreadable", "broker_unreachable"]
#: refusals that concern the agent or the ownership of the login: another VPS would get the same answer
NOT_THE_CREDENTIALS: Final = ACCOUNT_REFUSALS | {LEASE_OVER, ATTEMPTS_USED_UP} | CLAIMED


class UnfitForAccount(Exception):
    """This VPS cannot work the account; the text begins with `reason`."""

    def __init__(self, reason: Reason, why: BaseException) -> None:
        super().__init__(f"{reason}: {why}"[:500])
        self.reason = reason


@contextlib.contextmanager
def reading_credentials() -> Iterator[None]:
    try:
        yield
    except WireError as error:
        raise UnfitForAccount("credentials_unreadable", error) from error
    except Refused as error:
        if error.code in NOT_THE_CREDENTIALS:
            raise
        raise UnfitForAccount("credentials_unreadable", error) from error


@contextlib.contextmanager
def using_platform() -> Iterator[None]:
    """Covers the whole login, because some adapters load their platform's library only at first use."""
    try:
        yield
    except (UnknownPlatform, ImportError) as error:
        raise UnfitForAccount("platform_missing", error) from error


class Reach:
    """Whether this VPS can reach the account's broker. The database decides whether the VPS or the broker is at
    fault."""

    def __init__(self, patience: timedelta) -> None:
        self._patience = patience.total_seconds()
        self._since: float | None = None
        self._why = ""

    def lost(self, why: str) -> None:
        """A login attempt failed, or the connection was lost."""
        if self._since is None:
            self._since = boot_time()
        self._why = why

    def regained(self) -> None:
        """The broker answered, even with a refusal, or no attempt is being made at present."""
        self._since = None

    def fault(self) -> str | None:
        """The fault, if it has lasted for `patience`; begins with the reason."""
        if self._since is None or boot_time() - self._since < self._patience:
            return None
        return f"broker_unreachable: {self._why}"
