"""PostgREST's error format and its mapping from SQLSTATE to HTTP status (see "Errors" in its reference)."""

from typing import Final

import orjson
import psycopg
from aiohttp import web

JSON_TYPE: Final = "application/json; charset=utf-8"
# The longest matching prefix wins. Everything else, including custom codes such as TC103, is 400.
STATUS_OF_SQLSTATE: Final = {
    "08": 503, "09": 500, "0L": 403, "0P": 403, "21": 500, "23503": 409, "23505": 409,
    "25006": 405, "25": 500, "28": 403,
    "2D": 500, "38": 500, "39": 500, "3B": 500, "40": 500, "53400": 500, "53": 503, "54": 500, "55": 500, "57": 500,
    "57P01": 503, "58": 500, "F0": 500, "HV": 500, "P0001": 400, "P0": 500, "XX": 500, "42883": 404, "42P01": 404,
    "42P17": 500,
}  # fmt: skip


def status_of(sqlstate: str, *, signed_in: bool, message: str = "") -> int:
    """HTTP status of a database error; a missing privilege is 401 for anon and 403 for everyone else."""
    if sqlstate == "42501":
        return 403 if signed_in else 401
    if sqlstate == "22023" and message.startswith("role ") and message.endswith("does not exist"):
        return 401
    if sqlstate.startswith("PT") and sqlstate[2:].isdigit() and 400 <= int(sqlstate[2:]) <= 599:
        return int(sqlstate[2:])
    for length in (5, 2):
        status = STATUS_OF_SQLSTATE.get(sqlstate[:length])
        if status is not None:
            return status
    return 400


def problem(
    status: int, code: str, message: str, *, details: str | None = None, hint: str | None = None
) -> web.Response:
    """An error response as PostgREST writes it."""
    body = orjson.dumps({"code": code, "details": details, "hint": hint, "message": message})
    response = web.Response(status=status, body=body, content_type="application/json", charset="utf-8")
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def database_problem(error: psycopg.Error, *, signed_in: bool) -> web.Response:
    """The response for an error that Postgres answered with."""
    diag = error.diag
    code = error.sqlstate or "XX000"
    return problem(
        status_of(code, signed_in=signed_in, message=diag.message_primary or ""),
        code,
        diag.message_primary or str(error),
        details=diag.message_detail,
        hint=diag.message_hint,
    )


def database_away() -> web.Response:
    """PostgREST's answer while it has no connection."""
    response = problem(503, "PGRST001", "Database client error. Retrying the connection.")
    response.headers["Retry-After"] = "1"
    return response
