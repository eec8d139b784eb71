"""The command `tradecopier`. Sub-commands are imported only when used, so that each starts fast."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, TextIO

import click

from agent import paths
from agent.failure import Failure


@dataclass(frozen=True, slots=True)
class Entry:
    """The location of a sub-command (`module:attribute`) and its line in `--help`."""

    target: str
    help: str


COMMANDS: Final[Mapping[str, Entry]] = {
    "up": Entry("agent.practice.up:up", "Run the embedded Supabase stack, with practice accounts, until Ctrl-C."),
    "demo": Entry("agent.demo.command:demo", "Run stack, agents and accounts, and copy trades."),
    "scenario": Entry("agent.scenario.command:scenario", "Run scripted scenarios on the embedded stack."),
    "bench": Entry("agent.bench.command:bench", "Run a benchmark."),
    "paper": Entry("agent.practice.command:paper", "Practice accounts: open them and trade by hand."),
    "copier": Entry("agent.practice.command:copier", "Copiers between practice accounts."),
    "agent": Entry("agent.command.agent:agent", "Set up and run an agent: enroll, run, doctor, install."),
    "operator": Entry("agent.command.operator:operator", "Operators of the farm."),
    "restored": Entry("agent.command.restored:restored", "Declare that the database was restored from a backup."),
}


class LazyGroup(click.Group):
    """A group that lists its commands without importing them and imports one only when it is called."""

    def __init__(self, *args: object, entries: Mapping[str, Entry], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._entries.get(cmd_name)
        return None if entry is None else _load(cmd_name, entry)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._entries.items()])


def _load(name: str, entry: Entry) -> click.Command:
    module_name, _, attribute = entry.target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # If the command's own module (or a package above it) is missing, this version lacks the command. Any other
        # missing module is a broken set-up.
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise Failure(
                f"`tradecopier {name}` is not part of this version",
                "run `tradecopier --help` for the commands that are",
                code="TC601",
            ) from error
        raise Failure(
            f"`tradecopier {name}` needs the Python package {error.name}, which is not installed",
            "run `make setup`, or `pip install tradecopier` again",
            code="TC602",
        ) from error
    command = getattr(module, attribute)
    if not isinstance(command, click.Command):
        raise TypeError(f"{entry.target} is not a click command")
    return command


@click.group(cls=LazyGroup, entries=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, envvar="TRADECOPIER_DEBUG", help="Show the traceback of an error.")
@click.version_option(package_name="tradecopier")
@click.pass_context
def group(ctx: click.Context, debug: bool) -> None:
    """A fully managed trade copier on Supabase."""
    ctx.ensure_object(dict)["debug"] = debug


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. An error becomes one line on stderr; `--debug` raises it instead."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    try:
        with group.make_context("tradecopier", argv) as ctx:
            debug = bool(ctx.obj["debug"]) if ctx.obj else debug
            group.invoke(ctx)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            raise
        return _explain(error)
    return 0


def _explain(error: BaseException) -> int:
    match error:
        case BaseExceptionGroup() if error.exceptions:
            return _explain(_most_useful(error))
        case Failure():
            _say(str(error))
            return error.exit_status
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message(), err=True)
            return error.exit_code
        case click.UsageError():
            hint = f" → see `{error.ctx.command_path} --help`" if error.ctx else ""
            _say(error.format_message() + hint)
            return error.exit_code
        case click.ClickException():
            _say(error.format_message())
            return error.exit_code
        case OSError() if (failure := paths.failure_of(error)) is not None:
            return _explain(failure)
        case _:
            first = (str(error).splitlines() or [""])[0]
            _say(
                f"{type(error).__name__}: {first} → run it again with `tradecopier --debug …` and report what it prints"
            )
            return 1


def _most_useful(group_of_errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a task group that a person can act on: a `Failure` if there is one, else the first."""
    failures = group_of_errors.subgroup((Failure, click.ClickException))
    chosen = failures if failures is not None else group_of_errors
    return chosen.exceptions[0]


def _say(line: str) -> None:
    click.echo(f"tradecopier: {line}", err=True)


def main() -> NoReturn:
    """Entry point of the console script."""
    status = run()
    for stream in (sys.stdout, sys.stderr):
        _drain(stream)
    sys.exit(status)


def _drain(stream: TextIO) -> None:
    """Flush the stream. If its reader has gone (`| head`), redirect it to the null device, so that Python's own flush
    at exit cannot fail."""
    try:
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
