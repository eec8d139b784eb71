"""A group of commands whose help is never cut."""

import click

_UNCUT = 10_000


class CommandGroup(click.Group):
    """Lists each command with its whole first sentence, over several lines if need be; click would cut it to one."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [
            (name, command.get_short_help_str(_UNCUT))
            for name in self.list_commands(ctx)
            if (command := self.get_command(ctx, name)) is not None and not command.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
