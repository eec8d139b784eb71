"""Passwords of paper accounts, stored as salted hashes, so that reading the books' file gives nobody a login.

A trading password allows everything; an investor password is read-only, as at real brokers.
"""

import asyncio
import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import Literal

Right = Literal["trading", "investor"]

#: about 10 ms of one core: slow enough against guessing, fast enough for a farm that connects hundreds of accounts
_COST = 2**12
_MEMORY = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Hashed:
    """Salt and hash as hexadecimal text."""

    salt: str
    digest: str


def _digest(password: str, salt: bytes) -> str:
    return hashlib.scrypt(password.encode(), salt=salt, n=_COST, r=8, p=1, maxmem=_MEMORY).hex()


async def hashed(password: str) -> Hashed:
    """Hash in a separate thread, so that other accounts need not wait."""
    salt = os.urandom(16)
    return Hashed(salt.hex(), await asyncio.to_thread(_digest, password, salt))


async def matches(password: str, known: Hashed | None) -> bool:
    if known is None:
        return False
    return hmac.compare_digest(await asyncio.to_thread(_digest, password, bytes.fromhex(known.salt)), known.digest)
