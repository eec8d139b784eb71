"""The systemd unit of the agent. On other systems the error message gives the exact steps instead."""

import getpass
import sys
from pathlib import Path
from typing import Final

from agent import paths
from agent.failure import Failure
from agent.settings import PREFIX, default_data_dir, identity_file

UNIT: Final = "tradecopier-agent.service"
WINDOWS_STEPS: Final = (
    "the agent must run in the session of the user whose terminals it works: open Task Scheduler, Create Task, "
    "Trigger 'At log on', Action '{command}', Settings 'If the task fails, restart every 1 minute'; "
    "and enable automatic logon of that user"
)


def command_path() -> Path:
    """The `tradecopier` beside the running interpreter."""
    return Path(sys.executable).parent / ("tradecopier.exe" if sys.platform == "win32" else "tradecopier")


def unit_text(*, user: bool) -> str:
    """The unit file: restarts after any failure, up to 60 s for a clean stop, and only the needed rights."""
    owner = "" if user else f"User={getpass.getuser()}\n"
    return f"""[Unit]
Description=Trade copier agent
Wants=network-online.target
After=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
{owner}Environment={PREFIX}DATA_DIR={default_data_dir()}
ExecStart={command_path()} agent run
Restart=always
RestartSec=2
KillSignal=SIGTERM
TimeoutStopSec=60
NoNewPrivileges=yes
PrivateTmp=yes
UMask=0077

[Install]
WantedBy={"default.target" if user else "multi-user.target"}
"""


def unit_path(*, user: bool) -> Path:
    return Path.home() / ".config/systemd/user" / UNIT if user else Path("/etc/systemd/system") / UNIT


def install_unit(*, user: bool) -> list[str]:
    """Write the unit and return the lines that say what to do next. Raises `Failure`."""
    if sys.platform == "win32":
        raise Failure(
            "this version cannot install a service on Windows",
            WINDOWS_STEPS.format(command=f"{command_path()} agent run"),
            code="TC617",
        )
    if not Path("/run/systemd/system").exists():
        raise Failure(
            "this machine does not run systemd",
            f"let your init system run `{command_path()} agent run` and restart it when it ends",
            code="TC617",
        )
    if not identity_file(default_data_dir()).exists():
        raise Failure(
            "this machine is not enrolled",
            "run `tradecopier agent enroll --url U --token T` first, as the same user",
            code="TC611",
        )
    path = unit_path(user=user)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(unit_text(user=user))
    except OSError as error:
        fix = "run it with sudo, or with --user for a service of this user"
        raise paths.unwritable(path, error, fix) from error
    control = "systemctl --user" if user else "systemctl"
    steps = [f"wrote {path}", f"start it now and at boot: {control} daemon-reload && {control} enable --now {UNIT}"]
    if user:
        steps.append(f"let it run while nobody is logged in: loginctl enable-linger {getpass.getuser()}")
    return [*steps, f"its log: journalctl {'--user ' if user else ''}-u {UNIT} -f"]
