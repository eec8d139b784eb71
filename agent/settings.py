"""Settings of an agent: environment variables `TRADECOPIER_*`, then the file that `tradecopier agent enroll` wrote.

No secret has a default, nothing is guessed, and all missing or wrong keys are reported together.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, JsonConfigSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from agent.address import origin
from agent.failure import Failure

PREFIX: Final = "TRADECOPIER_"
FILE_NAME: Final = "agent.json"

#: for each key: what it is, or how to get it
HOW_TO_GET: Final[Mapping[str, str]] = {
    "url": "the address of the Supabase project, for example https://<ref>.supabase.co (Project Settings → Data API)",
    "publishable_key": "the publishable (anon) key of the project (Project Settings → API keys); not the secret one",
    "vps_id": "run `tradecopier agent enroll --url U --token T` with a token from an operator",
    "agent_secret": "run `tradecopier agent enroll --url U --token T` with a token from an operator",
    "agent_email": "give the agent's auth user together with its password, or enrol instead",
    "agent_password": "give the agent's auth user together with its password, or enrol instead",
    "name": "a name of 1 to 63 letters, digits, dots and dashes",
    "log_level": "one of DEBUG, INFO, WARNING, ERROR",
}
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


def default_data_dir() -> Path:
    """Where the agent keeps its journal and its identity: `TRADECOPIER_DATA_DIR`, else the system's place for it."""
    chosen = os.environ.get(PREFIX + "DATA_DIR")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "tradecopier"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "tradecopier"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "tradecopier"


def _log_level(name: str) -> str:
    if name.upper() not in LOG_LEVELS:
        raise ValueError(HOW_TO_GET["log_level"])
    return name.upper()


class Settings(BaseSettings):
    """One agent. `repr` shows no secret."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    url: Annotated[str, AfterValidator(origin)]
    publishable_key: Annotated[str, Field(min_length=1, repr=False)]
    #: the agent signs in with the identity that `enroll` wrote …
    vps_id: str | None = None
    agent_secret: SecretStr | None = None
    #: … or with an auth user's e-mail and password (embedded stack)
    agent_email: str | None = None
    agent_password: SecretStr | None = None
    data_dir: Path = Field(default_factory=default_data_dir)
    log_level: Annotated[str, AfterValidator(_log_level)] = "INFO"
    #: seconds that a clean stop may take before connections are cut
    drain_seconds: Annotated[float, Field(gt=0, le=120)] = 10

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = identity_file(default_data_dir())
        return init_settings, env_settings, JsonConfigSettingsSource(settings_cls, json_file=file)

    @property
    def rest_url(self) -> str:
        return f"{self.url}/rest/v1"

    @property
    def auth_url(self) -> str:
        return f"{self.url}/auth/v1"

    @property
    def functions_url(self) -> str:
        return f"{self.url}/functions/v1"

    @property
    def realtime_url(self) -> str:
        return f"{self.url}/realtime/v1"

    @property
    def journal_file(self) -> Path:
        return self.data_dir / "journal.sqlite3"


def identity_file(data_dir: Path) -> Path:
    return data_dir / FILE_NAME


def load_settings() -> Settings:
    """Read the settings. Raises one `Failure` that names every missing or wrong key and how to get it."""
    problems: list[str] = []
    settings: Settings | None = None
    try:
        settings = Settings()
    except ValidationError as error:
        problems = [
            _describe(str(item["loc"][0]), str(item["type"]), str(item["msg"]))
            for item in error.errors(include_input=False)
        ]
    except (OSError, ValueError) as error:
        file = identity_file(default_data_dir())
        raise Failure(
            f"the settings file {file} cannot be read ({_first_line(error)})",
            "fix or remove it, then enrol again",
            code="TC610",
        ) from error
    problems += _identity_problems(settings)
    if problems or settings is None:
        raise Failure(
            "the agent is not configured:\n  " + "\n  ".join(problems),
            f"set these in the environment or in {identity_file(default_data_dir())}",
            code="TC611",
        )
    return settings


def _identity_problems(settings: Settings | None) -> list[str]:
    """An agent needs vps_id + agent_secret, or agent_email + agent_password."""
    present = _present() if settings is None else {name for name in HOW_TO_GET if getattr(settings, name, None)}
    if {"vps_id", "agent_secret"} <= present or {"agent_email", "agent_password"} <= present:
        return []
    pair = (
        ("agent_email", "agent_password") if present & {"agent_email", "agent_password"} else ("vps_id", "agent_secret")
    )
    return [_describe(name, "missing", "") for name in pair if name not in present]


def _present() -> set[str]:
    """Names of the keys in the environment or the file, valid or not."""
    names = {name for name in HOW_TO_GET if os.environ.get(PREFIX + name.upper())}
    file = identity_file(default_data_dir())
    return names | set(JsonConfigSettingsSource(Settings, json_file=file)())


def _describe(name: str, kind: str, message: str) -> str:
    problem = "is missing" if kind == "missing" else f"is wrong ({message.removeprefix('Value error, ')})"
    return f"{PREFIX}{name.upper()} {problem}: {HOW_TO_GET.get(name, 'see docs/operations.md')}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
