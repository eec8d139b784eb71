"""Structured logs, one JSON object per line on stderr: time, level, event, logger, and the event's fields.

The agent logs no secrets (they are `SecretStr` or `repr=False`); tokens that a library logs are removed here.
"""

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

import orjson

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_TOKEN: Final = re.compile(r"eyJ[\w-]{8,}\.[\w-]+\.[\w-]+|\bsb_(?:secret|publishable)_[\w-]+|(?<=apikey=)[^&\s\"']+")
#: libraries that log whole payloads and every retry as an error; the agent logs the relevant failures itself
_CHATTY: Final = ("realtime", "websockets", "aiohttp", "asyncio", "httpx", "httpcore")
LIMIT: Final = 2_000


def redact(text: str) -> str:
    """The text without JWTs and API keys, cut to `LIMIT` characters."""
    clean = _TOKEN.sub("[redacted]", text)
    return clean if len(clean) <= LIMIT else f"{clean[:LIMIT]}… ({len(clean)} characters)"


class JsonLines(logging.Formatter):
    """The event's name is the message; `extra` holds its fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": redact(record.getMessage()),
            "logger": record.name,
            **{key: redact(value) if isinstance(value, str) else value for key, value in fields.items()},
        }
        if record.exc_info:
            line["traceback"] = redact(self.formatException(record.exc_info))
        return orjson.dumps(line, default=lambda value: redact(str(value))).decode()


def set_up_logs(level: str, stream: TextIO | None = None) -> None:
    """Send the root logger's records as JSON lines to `stream` (stderr)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL if name == "realtime" else logging.WARNING)
