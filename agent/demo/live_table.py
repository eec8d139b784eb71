"""The live display of a run: agents, executions, latency, reasons and the last trades; plain lines without a
terminal."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import psycopg
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent.testbed.figures import copy_figures, counts, mapping, verdict
from agent.testbed.quiescence import Observer

REFRESH_S = 0.5
PLAIN_EVERY_S = 5.0
#: without an answer for so long, the database counts as away
ANSWER_S = 5.0
LONGEST_PAUSE_S = 30.0
WIDE = 110

AGENTS = """
  select v.name, case when v.status = 'online' and private.lease_end(v) <= clock_timestamp() then 'lease expired'
    else v.status end as status, v.rss_mb, v.rtt_ms, extract(epoch from clock_timestamp() - v.last_heartbeat_at) as age,
    (select count(*) from public.account_vps_assignments s where s.vps_id = v.id)::integer as accounts
  from public.vps_instances v where v.retired_at is null order by v.name"""
#: of everything in the database, which is of this run alone, with the times of the last 500 orders
FIGURES = "select private.figures_of(null, null, null, 500, 0) as figures"
LAST = """
  select a.name, q.action, q.side, q.symbol, q.status, q.reason,
    trim_scale(case when q.action in ('close', 'reduce') and q.status = 'completed'
      then coalesce(q.filled_lots, q.lots) else q.lots end) as lots,
    t.ours_ms::double precision as ms
  from public.trade_execution_queue q join public.trading_accounts a on a.id = q.account_id
  join public.execution_latencies t on t.id = q.id
  order by q.id desc limit %(rows)s"""

#: no other tone is green
TONES = {"ok": "green", "idle": "default", "warn": "yellow", "bad": "red"}

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Picture:
    """The values that the table shows, read at one moment. `verdict`: what the board says, too."""

    agents: Sequence[Row]
    #: trades (one per follower) by result, orders by status, trades that were not copied by reason
    trades: Mapping[str, int]
    orders: Mapping[str, int]
    reasons: Mapping[str, int]
    p50: float | None
    p95: float | None
    last: Sequence[Row]
    #: from the master's fill to the follower's; the two above are from seen to sent
    whole_p50: float | None = None
    whole_p95: float | None = None
    verdict: str = ""
    tone: str = "idle"


NOTHING = Picture(agents=(), trades={}, orders={}, reasons={}, p50=None, p95=None, last=())


async def take(observer: Observer, *, rows: int = 8) -> Picture:
    said = await verdict(observer)
    counted = await copy_figures(observer, FIGURES)
    orders, ours, whole = (mapping(counted[name]) for name in ("orders", "ours_ms", "whole_ms"))
    rejected = sum(counts(orders["rejected"]).values())
    return Picture(
        verdict=said["text"],
        tone=said["tone"],
        agents=await observer.rows(AGENTS),
        trades={name: n for name, n in counts(counted["trades"]).items() if name != "all"},
        orders=counts({name: n for name, n in orders.items() if name != "rejected"}) | {"rejected": rejected},
        reasons=counts(counted["not_copied"]),
        p50=_time(ours["p50"]),
        p95=_time(ours["p95"]),
        whole_p50=_time(whole["p50"]),
        whole_p95=_time(whole["p95"]),
        last=await observer.rows(LAST, {"rows": rows}),
    )


def render(picture: Picture, headline: str, *, width: int, height: int | None = None) -> RenderableType:
    """Render in `width` columns and, if given, at most `height` lines.

    A narrow terminal gets fewer columns, and a cell that is too long for it continues on the next line: nothing is cut.
    A low terminal gets fewer of the last orders.
    """
    wide = width >= WIDE
    said = Text(picture.verdict, style=TONES.get(picture.tone, "red"))
    above = Group(Text(headline), said, Text(), _agents(picture, wide=wide), Text(), _copies(picture), Text())
    if height is None:
        return Group(above, _last(picture.last, wide=wide))
    console = Console(width=width, height=height)
    options = console.options.update(width=width, height=None)
    left = height - len(console.render_lines(above, options))
    rows = list(picture.last)
    while rows and len(console.render_lines(_last(rows, wide=wide), options)) > left:
        rows.pop()
    return Group(above, _last(rows, wide=wide))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _agents(picture: Picture, *, wide: bool) -> Table:
    table = _table("agent", "state", "accounts", "seen")
    if wide:
        for column in ("memory", "round trip"):
            table.add_column(column, justify="right", no_wrap=True)
    for row in picture.agents:
        state = Text(str(row["status"]), style="green" if row["status"] == "online" else "red")
        cells: list[str | Text] = [Text(str(row["name"])), state, str(row["accounts"]), _unit(row["age"], "s ago", 0)]
        table.add_row(*cells, *([_unit(row["rss_mb"], "MB", 0), _unit(row["rtt_ms"], "ms", 1)] if wide else []))
    return table


def _copies(picture: Picture) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("trades", f"{listed(picture.trades) or 'none yet'} (one per follower)")
    table.add_row("orders", listed(picture.orders) or "none yet")
    table.add_row(
        "latency",
        f"ours p50 {_unit(picture.p50, 'ms', 1)}, p95 {_unit(picture.p95, 'ms', 1)};"
        f" whole p50 {_unit(picture.whole_p50, 'ms', 1)}, p95 {_unit(picture.whole_p95, 'ms', 1)} (last 500 orders)",
    )
    table.add_row("not copied", listed(picture.reasons) or "nothing")
    return table


def listed(numbers: Mapping[str, int]) -> str:
    """The numbers that are not 0, each with its name in words: `7 below min, 1 no money`."""
    return ", ".join(f"{n} {in_words(name)}" for name, n in sorted(numbers.items()) if n)


def in_words(code: str) -> str:
    """A status or reason as people read it."""
    return "in flight" if code == "open" else code.replace("_", " ")


def _last(rows: Sequence[Row], *, wide: bool) -> Table:
    table = _table("last orders of", "order", "lots", "symbol", "outcome")
    if wide:
        table.add_column("latency", justify="right", no_wrap=True)
    for row in rows:
        tone = {"completed": "green", "rejected": "red", "expired": "red"}.get(str(row["status"]), "yellow")
        cells: list[str | Text] = [
            Text(str(row["name"])),
            f"{row['action']} {row['side']}",
            str(row["lots"]),
            Text(str(row["symbol"])),
            Text(in_words(str(row["reason"] or row["status"])), style=tone),
        ]
        table.add_row(*cells, *([_unit(row["ms"], "ms", 1)] if wide else []))
    return table


def _time(value: object) -> float | None:
    return None if value is None else float(str(value))


def _unit(value: object, unit: str, places: int) -> str:
    return "–" if value is None else f"{float(str(value)):.{places}f} {unit}"


def plain(picture: Picture, headline: str) -> str:
    """The same in one line, for logs and pipes."""
    online = sum(1 for row in picture.agents if row["status"] == "online")
    trades = f"trades: {listed(picture.trades) or 'none yet'}"
    orders = f"orders: {listed(picture.orders) or 'none yet'}"
    reasons = listed(picture.reasons)
    latency = f"p50 {_unit(picture.p50, 'ms', 1)} p95 {_unit(picture.p95, 'ms', 1)}"
    line = f"{headline} | {picture.verdict} | {online} agents online | {trades} | {orders} | {latency}"
    return line + (f" | not copied: {reasons}" if reasons else "")


async def show(console: Console, observer: Observer, headline: Callable[[], str]) -> None:
    """Show the display until cancelled. While the database is away, the verdict says so."""
    if not console.is_terminal:

        def draw_line(picture: Picture) -> None:
            console.print(plain(picture, headline()), soft_wrap=True, highlight=False, markup=False)

        await _repeat(PLAIN_EVERY_S, observer, draw_line)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:

        def draw(picture: Picture) -> None:
            # one line less than the terminal has: the cursor stands below the display
            shown = render(picture, headline(), width=console.width, height=console.height - 1)
            live.update(shown, refresh=True)

        await _repeat(REFRESH_S, observer, draw)


async def _repeat(pause_s: float, observer: Observer, draw: Callable[[Picture], None]) -> None:
    """Draw again and again. Counting the trades of a long run takes its time: at most a tenth is spent on it."""
    picture = NOTHING
    while True:
        begun, pause = time.monotonic(), pause_s
        reading = asyncio.ensure_future(take(observer))
        try:
            while not (await asyncio.wait({reading}, timeout=ANSWER_S))[0]:
                draw(without_database(picture))
            picture = reading.result()
            draw(picture)
            pause = max(pause_s, min(9 * (time.monotonic() - begun), LONGEST_PAUSE_S))
        except psycopg.OperationalError:  # the next look tries again
            draw(without_database(picture))
        finally:
            reading.cancel()
            await asyncio.wait({reading})
        await asyncio.sleep(pause)


def without_database(last: Picture) -> Picture:
    """The last picture while the database does not answer: nobody knows whether anything is well."""
    agents = [{**row, "status": "unknown", "age": None} for row in last.agents]
    return replace(last, agents=agents, tone="bad", verdict="The database does not answer: everything below is old")
