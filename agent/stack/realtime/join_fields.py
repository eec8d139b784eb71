"""Checks the free-form fields of a join; a field that is out of bounds is refused by name before it is used."""

import math
from collections.abc import Mapping
from typing import Final

import orjson

from agent.stack.realtime.tokens import Refused

TOPIC_CHARACTERS: Final = 2_000
PRESENCE_KEY_CHARACTERS: Final = 255
TOKEN_CHARACTERS: Final = 16_000
CHANGES: Final = 100
CHANGES_BYTES: Final = 16_000
#: 31 December 9999, the last moment that a timestamp can represent
LAST_MOMENT_MS: Final = 253_402_300_799_999


def check_fields(name: str, token: object, presence_key: str, changes: tuple[Mapping[str, object], ...]) -> None:
    """Raises Refused with the name of the field that is out of bounds."""
    if len(name) > TOPIC_CHARACTERS or "\0" in name:
        raise Refused("InvalidTopicName", f"The topic name must be at most {TOPIC_CHARACTERS} characters, without NUL")
    if isinstance(token, str) and len(token) > TOKEN_CHARACTERS:
        raise Refused("MalformedJWT", "The token provided is not a valid JWT")
    if len(presence_key) > PRESENCE_KEY_CHARACTERS:
        raise Refused("InvalidJoinPayload", f"presence.key must be at most {PRESENCE_KEY_CHARACTERS} characters")
    if len(changes) > CHANGES or not is_writable(changes, CHANGES_BYTES):
        raise Refused(
            "InvalidJoinPayload",
            f"postgres_changes must be at most {CHANGES} entries, in all at most {CHANGES_BYTES} bytes",
        )


def is_writable(value: object, largest: int) -> bool:
    """Whether the value can be sent on as JSON: decoding accepts deeper nesting than encoding, and a frame adds
    levels."""
    try:
        return len(orjson.dumps([[[[[[[[value]]]]]]]])) - 16 <= largest
    except TypeError:
        return False


def replay_window(replay: Mapping[str, object], most: int) -> tuple[float, int]:
    """Returns (since in Unix ms, number of messages) for a join that requests a replay. Raises Refused."""
    since, limit = replay.get("since"), replay.get("limit", most)
    if (
        isinstance(since, bool)
        or not isinstance(since, int | float)
        or not math.isfinite(since)
        or not 0 <= since <= LAST_MOMENT_MS
    ):
        raise Refused(
            "UnableToReplayMessages",
            f"Replay params are not valid: since must be Unix milliseconds from 0 to {LAST_MOMENT_MS}",
        )
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise Refused(
            "UnableToReplayMessages", f"Replay params are not valid: limit must be a whole number from 1 to {most}"
        )
    return since, min(limit, most)
