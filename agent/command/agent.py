"""`tradecopier agent`: sets up and runs an agent on a VPS. Each command imports what it needs when it runs."""

import asyncio
import sys

import click

from agent.command_group import CommandGroup


@click.group(cls=CommandGroup)
def agent() -> None:
    """Set up and run an agent: enroll, run, doctor, install."""


@agent.command()
@click.option("--url", required=True, help="Address of the Supabase project.")
@click.option(
    "--token",
    required=True,
    envvar="TRADECOPIER_ENROLLMENT_TOKEN",
    help="One-time token that an operator gets from create_enrollment_token (docs/api.md).",
)
@click.option("--name", help="Name of this VPS; default: the machine's.")
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    help="A platform that this VPS works; may be repeated. Default: all that can be used here.",
)
@click.option("--key", help="Publishable key, if the project does not send it.")
def enroll(url: str, token: str, name: str | None, platforms: tuple[str, ...], key: str | None) -> None:
    """Make this machine a VPS of the farm."""
    from agent.command.doctor import usable_platforms
    from agent.command.enrollment import enroll_this_machine
    from agent.settings import default_data_dir

    identity, file = enroll_this_machine(url, token, name, platforms or usable_platforms(), key, default_data_dir())
    click.echo(f"enrolled as VPS {identity.vps_id}; identity stored in {file} (readable by this user only)")
    click.echo("next: `tradecopier agent doctor`, then `tradecopier agent run` or `tradecopier agent install`")


@agent.command()
def run() -> None:
    """Work the accounts assigned to this VPS, until SIGTERM or Ctrl-C."""
    from agent.logs import set_up_logs
    from agent.service.run import run_agent
    from agent.settings import load_settings

    settings = load_settings()
    set_up_logs(settings.log_level)
    asyncio.run(run_agent(settings))


@agent.command()
def doctor() -> None:
    """Check what an agent needs on this machine, and print how to fix what is wrong."""
    from agent.command.doctor import examine

    healthy = True
    for check in examine():
        healthy = healthy and check.ok
        click.echo(check.line())
    if not healthy:
        sys.exit(1)


@agent.command()
@click.option("--user", is_flag=True, help="A service of this user instead of the machine (no root needed).")
@click.option("--print", "print_only", is_flag=True, help="Print the unit instead of writing it.")
def install(user: bool, print_only: bool) -> None:
    """Install a service that starts the agent at boot (systemd)."""
    from agent.command.service_unit import install_unit, unit_text

    if print_only:
        click.echo(unit_text(user=user), nl=False)
        return
    for line in install_unit(user=user):
        click.echo(line)
