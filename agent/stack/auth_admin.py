"""Auth's admin API for users (`/auth/v1/admin/users`), which @supabase/lite lacks. Secret key only."""

import re
import uuid
from collections.abc import Mapping
from typing import Annotated, Final

import psycopg
from aiohttp import web
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agent.stack.authentication import Access, AccessRefused
from agent.stack.request_body import read_body

SHORTEST_PASSWORD: Final = 6
# bcrypt ignores anything beyond this length
LONGEST_PASSWORD_BYTES: Final = 72
LARGEST_PAGE: Final = 1000
# the form that hosted accepts (that of HTML's e-mail inputs)
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ADDRESS: Final = re.compile(rf"[a-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABEL}(?:\.{_LABEL})*")


def _email(value: object) -> object:
    if isinstance(value, str):
        address = value.strip().lower()
        if not _ADDRESS.fullmatch(address) or len(address) > 255:
            raise ValueError("Unable to validate email address: invalid format")
        return address
    return value


class UserChange(BaseModel):
    """The body of create and update; a field that is absent stays unchanged."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    id: uuid.UUID | None = None
    email: Annotated[str | None, BeforeValidator(_email)] = None
    password: str | None = Field(default=None, repr=False)
    email_confirm: bool = False
    user_metadata: dict[str, object] | None = None
    app_metadata: dict[str, object] | None = None
    role: str | None = None
    ban_duration: str | None = None


class AuthRefused(Exception):
    """An Auth error in GoTrue's form: HTTP status, error code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def response(self) -> web.Response:
        """The error as a GoTrue response."""
        return web.json_response({"code": self.status, "error_code": self.code, "msg": str(self)}, status=self.status)


class AuthAdmin:
    """Reads and writes auth.users and auth.identities as supabase_auth_admin."""

    def __init__(self, dsn: str, access: Access) -> None:
        self._dsn = dsn
        self._access = access

    def attach(self, app: web.Application) -> None:
        """Mount the routes. They must precede the catch-all route that forwards the rest of Auth."""
        app.router.add_get("/auth/v1/admin/users", self._guarded)
        app.router.add_post("/auth/v1/admin/users", self._guarded)
        for method in ("GET", "PUT", "DELETE"):
            app.router.add_route(method, "/auth/v1/admin/users/{id}", self._guarded)

    async def _guarded(self, request: web.Request) -> web.Response:
        try:
            if not self._access.is_secret(request):
                raise AuthRefused(403, "not_admin", "User not allowed")
            async with await psycopg.AsyncConnection.connect(
                self._dsn, row_factory=dict_row, connect_timeout=5
            ) as connection:
                return await self._dispatch(request, connection)
        except AccessRefused as refused:
            return refused.response
        except AuthRefused as error:
            return error.response()
        except psycopg.OperationalError:
            return AuthRefused(503, "unexpected_failure", "Database is away, try again").response()

    async def _dispatch(
        self, request: web.Request, connection: "psycopg.AsyncConnection[dict[str, object]]"
    ) -> web.Response:
        user_id = _user_id(request)
        match request.method, user_id:
            case "POST", None:
                return web.json_response(await _create(connection, await _change(request)))
            case "GET", None:
                return await _list(request, connection)
            case "GET", uuid.UUID():
                return web.json_response(await _read(connection, user_id))
            case "PUT", uuid.UUID():
                return web.json_response(await _update(connection, user_id, await _change(request)))
            case "DELETE", uuid.UUID():
                user = await _read(connection, user_id)
                await connection.execute("delete from auth.users where id = %s", (user_id,))
                del user
                return web.json_response({})
            case _:
                raise AuthRefused(405, "validation_failed", "Method not allowed")


def _user_id(request: web.Request) -> uuid.UUID | None:
    text = request.match_info.get("id")
    if text is None:
        return None
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise AuthRefused(404, "validation_failed", "user_id must be an UUID") from error


async def _change(request: web.Request) -> UserChange:
    body = await read_body(request)
    if isinstance(body, web.Response):
        raise AuthRefused(413, "validation_failed", "The request body is over 10 MB")
    try:
        change = UserChange.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise AuthRefused(400, "validation_failed", f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if change.password is not None:
        if len(change.password) < SHORTEST_PASSWORD:
            raise AuthRefused(422, "weak_password", f"Password should be at least {SHORTEST_PASSWORD} characters.")
        if len(change.password.encode()) > LONGEST_PASSWORD_BYTES:
            raise AuthRefused(
                400, "validation_failed", f"Password cannot be longer than {LONGEST_PASSWORD_BYTES} characters"
            )
    return change


async def _create(connection: "psycopg.AsyncConnection[dict[str, object]]", change: UserChange) -> Mapping[str, object]:
    if change.email is None:
        raise AuthRefused(400, "validation_failed", "Cannot create a user without either an email or phone")
    user_id = change.id or uuid.uuid4()
    try:
        await connection.execute(
            "insert into auth.users (id, aud, role, email, encrypted_password, email_confirmed_at, raw_app_meta_data,"
            " raw_user_meta_data, banned_until)"
            " values (%(id)s, 'authenticated', coalesce(%(role)s, 'authenticated'), %(email)s,"
            " case when %(password)s::text is not null"
            "   then extensions.crypt(%(password)s, extensions.gen_salt('bf', 10)) end,"
            " case when %(confirm)s then now() end, %(app)s, %(user)s,"
            " case when coalesce(%(ban)s, 'none') <> 'none' then now() + %(ban)s::interval end)",
            _parameters(user_id, change)
            | {
                "app": Jsonb({"provider": "email", "providers": ["email"], **(change.app_metadata or {})}),
                "user": Jsonb(change.user_metadata or {}),
            },
        )
        identity = {"sub": str(user_id), "email": change.email, "email_verified": False, "phone_verified": False}
        await connection.execute(
            "insert into auth.identities (id, provider, provider_id, user_id, identity_data)"
            " values (gen_random_uuid(), 'email', %s, %s, %s)",
            (str(user_id), user_id, Jsonb(identity)),
        )
    except psycopg.errors.UniqueViolation as error:
        raise AuthRefused(422, "email_exists", "A user with this email address has already been registered") from error
    except psycopg.errors.DataError as error:
        raise AuthRefused(400, "validation_failed", str(error).splitlines()[0]) from error
    return await _read(connection, user_id)


async def _update(
    connection: "psycopg.AsyncConnection[dict[str, object]]", user_id: uuid.UUID, change: UserChange
) -> Mapping[str, object]:
    await _read(connection, user_id)
    try:
        await connection.execute(
            "update auth.users set updated_at = now(), email = coalesce(%(email)s, email),"
            " role = coalesce(%(role)s, role),"
            " encrypted_password = case when %(password)s::text is null then encrypted_password"
            "   else extensions.crypt(%(password)s, extensions.gen_salt('bf', 10)) end,"
            " email_confirmed_at = case when %(confirm)s then coalesce(email_confirmed_at, now())"
            "   else email_confirmed_at end,"
            " raw_app_meta_data = raw_app_meta_data || coalesce(%(app)s::jsonb, '{}'),"
            " raw_user_meta_data = raw_user_meta_data || coalesce(%(user)s::jsonb, '{}'),"
            " banned_until = case when %(ban)s::text is null then banned_until when %(ban)s = 'none' then null"
            "   else now() + %(ban)s::interval end"
            " where id = %(id)s",
            _parameters(user_id, change)
            | {
                "app": None if change.app_metadata is None else Jsonb(change.app_metadata),
                "user": None if change.user_metadata is None else Jsonb(change.user_metadata),
            },
        )
        if change.email is not None:
            await connection.execute(
                "update auth.identities set updated_at = now(),"
                " identity_data = identity_data || jsonb_build_object('email', %s::text)"
                " where user_id = %s and provider = 'email'",
                (change.email, user_id),
            )
    except psycopg.errors.UniqueViolation as error:
        raise AuthRefused(422, "email_exists", "A user with this email address has already been registered") from error
    except psycopg.errors.DataError as error:
        raise AuthRefused(400, "validation_failed", str(error).splitlines()[0]) from error
    return await _read(connection, user_id)


def _parameters(user_id: uuid.UUID, change: UserChange) -> dict[str, object]:
    return {
        "id": user_id,
        "email": change.email,
        "role": change.role,
        "password": change.password,
        "confirm": change.email_confirm,
        "ban": change.ban_duration,
    }


USER: Final = """
select jsonb_strip_nulls(jsonb_build_object(
  'id', u.id, 'aud', u.aud, 'role', u.role, 'email', coalesce(u.email, ''), 'phone', coalesce(u.phone, ''),
  'email_confirmed_at', u.email_confirmed_at, 'confirmed_at', u.confirmed_at, 'last_sign_in_at', u.last_sign_in_at,
  'app_metadata', u.raw_app_meta_data, 'user_metadata', u.raw_user_meta_data, 'banned_until', u.banned_until,
  'created_at', u.created_at, 'updated_at', u.updated_at, 'is_anonymous', u.is_anonymous,
  'identities', coalesce((
    select jsonb_agg(jsonb_build_object(
      'identity_id', i.id, 'id', i.provider_id, 'user_id', i.user_id,
      'identity_data', i.identity_data, 'provider', i.provider,
      'last_sign_in_at', coalesce(i.last_sign_in_at, i.created_at),
      'created_at', i.created_at, 'updated_at', i.updated_at))
    from auth.identities i where i.user_id = u.id), '[]')
)) as user from auth.users u
"""


async def _read(connection: "psycopg.AsyncConnection[dict[str, object]]", user_id: uuid.UUID) -> Mapping[str, object]:
    cursor = await connection.execute(USER + " where u.id = %s", (user_id,))
    row = await cursor.fetchone()
    user = None if row is None else row["user"]
    if not isinstance(user, dict):
        raise AuthRefused(404, "user_not_found", "User not found")
    return user


async def _list(request: web.Request, connection: "psycopg.AsyncConnection[dict[str, object]]") -> web.Response:
    page = _number(request, "page", 1)
    per_page = min(LARGEST_PAGE, _number(request, "per_page", 50))
    cursor = await connection.execute(
        USER + " order by u.created_at desc, u.id limit %s offset %s", (per_page, (page - 1) * per_page)
    )
    users = [row["user"] for row in await cursor.fetchall()]
    cursor = await connection.execute("select count(*) as total from auth.users")
    row = await cursor.fetchone()
    total = row["total"] if row is not None else 0
    return web.json_response({"users": users, "aud": "authenticated"}, headers={"X-Total-Count": str(total)})


def _number(request: web.Request, name: str, otherwise: int) -> int:
    text = request.query.get(name, "")
    if not text:
        return otherwise
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise AuthRefused(400, "validation_failed", f"Bad Pagination Parameters: {name} is {text!r}, not a number")
    return max(1, int(text))
