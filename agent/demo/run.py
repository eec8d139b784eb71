"""The demo itself: sets up the accounts, lets the master trade, shows the progress, and prints the results at the
end."""

import asyncio
import contextlib
import os
import signal
import sys
import time
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

from rich.console import Console

from agent.demo.accounts import DEMO_PRICES, Cast, replaying_cast, trading_cast
from agent.demo.live_table import show
from agent.demo.random_trader import Trader
from agent.demo.replay import Replay
from agent.demo.statement import Statement
from agent.demo.summary import summary
from agent.paper.specs import DEFAULT_PRICES
from agent.testbed.figures import Copying, measure
from agent.testbed.quiescence import Hanging, Worked
from agent.testbed.supabase_client import Person
from agent.testbed.testbed import Testbed
from agent.testbed.waiting import Steps, shown

VPS_NAMES: Final = ("vps-a", "vps-b", "vps-c")
EMAIL: Final = "demo@tradecopier.test"
SETTLE_S: Final = 20.0
WORKED_BY: Final = "select account_id::text from public.account_vps_assignments where vps_id = %(vps)s::uuid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`seconds` None: until Ctrl-C, or until the statement ends. `speed` None: as fast as actions are copied."""

    seconds: float | None = None
    statement: Statement | None = None
    speed: float | None = None
    seed: int = 1
    actions_per_second: float = 3.0
    kill_vps: bool = False


class Outlet(Console):
    """Standard output. When its reader goes away (`| head`), `gone` is called and printing stops."""

    def __init__(self, gone: Callable[[], None]) -> None:
        super().__init__()
        self._gone = gone

    def on_broken_pipe(self) -> None:
        """Override Rich, which would raise SystemExit here and leave the tasks of the event loop hanging."""
        self.quiet = True
        self._gone()


@dataclass(slots=True)
class Scene:
    """The running demo."""

    testbed: Testbed
    owner: Person
    master: Worked
    copiers: list[Copying]
    console: Console

    @property
    def accounts(self) -> list[Worked]:
        return [self.master, *(copier.follower for copier in self.copiers)]


Afterwards = Callable[[Scene, dict[str, object]], Awaitable[None]]


async def run_demo(
    options: Options, console: Console | None = None, *, afterwards: Afterwards | None = None
) -> dict[str, object]:
    """Run a demo and return its results. `afterwards` is called with them while everything still runs.

    Ctrl-C, SIGTERM or a closed output pipe end the trading; results are still taken.
    """
    cast = trading_cast() if options.statement is None else replaying_cast(options.statement)
    with _stopped_by_signals() as stop:
        out = console or Outlet(stop.set)
        async with _scene(cast, out) as scene:
            begun = time.monotonic()
            failover = Failover(scene) if options.kill_vps else None
            events = await _perform(scene, options, stop, failover)
            seconds = time.monotonic() - begun
            out.print("waiting until all copies are complete", highlight=False)
            await _settle(scene)
            figures = await measure(
                scene.testbed.farm.observer, scene.testbed.farm.paper, scene.copiers, seconds=seconds, events=events
            )
            if failover is not None:
                figures["failover"] = failover.figures(figures)
            if afterwards is not None:
                await afterwards(scene, figures)
    out.print(summary(figures), highlight=False, markup=False)
    return figures


# --- before ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _scene(cast: Cast, out: Console) -> AsyncIterator[Scene]:
    with Steps(out) as say:
        async with Testbed.open("demo", say=say) as testbed:
            scene = await _put_up(testbed, cast, out, say)
            say.end()
            _invite(scene)
            yield scene
            out.print("ending", highlight=False)


async def _put_up(testbed: Testbed, cast: Cast, out: Console, say: Callable[[str], None]) -> Scene:
    farm = testbed.farm
    owner = await farm.backend.sign_up(EMAIL)
    # the page also shows the agents to an operator
    await testbed.stack.call("grant_operator", {"p_email": EMAIL})
    testbed.stack.show_login(owner.email, owner.password)
    vpses = await farm.add_vpses(VPS_NAMES)
    await farm.paper.set_prices(DEMO_PRICES)
    master = await farm.open_account(cast.master, owner.user_id, vpses[0])
    copiers = []
    for follower in cast.followers:
        account = await farm.open_account(follower.opening, owner.user_id, vpses[follower.role.vps])
        copiers.append(Copying(master=master, follower=account, settings=follower.settings))
    scene = Scene(testbed, owner, master, copiers, out)
    await farm.wait_connected(scene.accounts)
    say("creating the copiers")
    for follower, copying in zip(cast.followers, copiers, strict=True):
        await farm.save_copier(owner, master, copying.follower, {"name": follower.role.name, **follower.role.columns})
    return scene


def _invite(scene: Scene) -> None:
    seen = sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if sys.stdout.isatty() and seen:
        webbrowser.open(scene.testbed.stack.url)
    values = {"page": f"{scene.testbed.stack.url}/", "login": scene.owner.email, "password": scene.owner.password}
    for name, value in values.items():
        # a value that is broken over two lines could not be copied
        scene.console.print(f"{name:10}{value}", highlight=False, markup=False, soft_wrap=True)


# --- the play -------------------------------------------------------------------------------------------------


async def _perform(scene: Scene, options: Options, stop: asyncio.Event, failover: "Failover | None") -> int | None:
    """Let the master trade. Returns how many actions of a statement were detected (None: no statement)."""
    replay = _replay(scene, options)
    begun = time.monotonic()

    def headline() -> str:
        elapsed = f"{time.monotonic() - begun:.0f} s"
        if replay is not None and options.statement is not None:
            return f"{elapsed}: {replay.detected} of {len(options.statement.actions)} statement actions detected"
        return f"{elapsed}{'' if options.seconds is None else f' of {options.seconds:.0f} s'}: the master trades"

    async with asyncio.TaskGroup() as group:
        picture = group.create_task(_picture(scene, headline))
        play = group.create_task(_trade(scene, options) if replay is None else _follow(scene, replay, options))
        ended = group.create_task(stop.wait())
        loss = None if failover is None else group.create_task(failover.run((options.seconds or 30) / 4))
        await asyncio.wait({play, ended}, timeout=options.seconds, return_when=asyncio.FIRST_COMPLETED)
        if loss is not None and not ended.done():
            await asyncio.wait({loss, ended}, return_when=asyncio.FIRST_COMPLETED)
            loss.cancel()
        for task in (picture, play, ended):
            task.cancel()
    if play.done() and not play.cancelled():
        play.result()
    return None if replay is None else replay.detected


class Failover:
    """Kills the agent of the last VPS during trading, and measures the time until other VPSes work its accounts."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._seconds: float | None = None
        self._moved: list[Worked] = []

    async def run(self, after_s: float) -> None:
        farm = self._scene.testbed.farm
        await asyncio.sleep(after_s)
        vps = farm.vpses[VPS_NAMES[-1]]
        rows = await farm.observer.rows(WORKED_BY, {"vps": vps.vps_id})
        lost = {str(row["account_id"]) for row in rows}
        self._moved = [account for account in self._scene.accounts if account.account_id in lost]
        before = {account: await farm.session(account) for account in self._moved}
        killed = time.monotonic()
        farm.kill(vps)
        self._scene.console.print(
            f"{vps.name} was killed: {len(self._moved)} accounts must move to other VPSes", highlight=False
        )
        for account, session in before.items():
            await farm.wait_new_session(account, session)
        await farm.wait_connected(self._moved)
        self._seconds = time.monotonic() - killed

    def figures(self, run: dict[str, object]) -> dict[str, object]:
        """`seconds` None: the accounts had not been taken over when the run ended."""
        seconds = None if self._seconds is None else round(self._seconds, 3)
        return {
            "seconds": seconds,
            "accounts": len(self._moved),
            "duplicates": run["duplicates"],
            "divergence": run["divergence"],
        }


async def _picture(scene: Scene, headline: Callable[[], str]) -> None:
    eyes = scene.testbed.farm.observer.another()
    try:
        await show(scene.console, eyes, headline)
    finally:
        await eyes.close()


def _replay(scene: Scene, options: Options) -> Replay | None:
    if options.statement is None:
        return None
    farm = scene.testbed.farm
    return Replay(options.statement, farm.paper, farm.observer, scene.master)


async def _trade(scene: Scene, options: Options) -> None:
    farm = scene.testbed.farm
    await farm.paper.start_feed(seed=options.seed)
    trader = Trader(farm.paper, scene.master.login, tuple(DEFAULT_PRICES), seed=options.seed)
    try:
        await trader.run(per_second=options.actions_per_second)
    finally:
        await farm.paper.stop_feed()


async def _follow(scene: Scene, replay: Replay, options: Options) -> None:
    async def settle() -> None:
        with contextlib.suppress(Hanging):
            await scene.testbed.farm.observer.wait_quiet(scene.accounts, limit_s=2)

    await replay.set_first_prices()
    await replay.run(speed=options.speed, settle=settle)


# --- after ----------------------------------------------------------------------------------------------------


async def _settle(scene: Scene) -> None:
    try:
        # elsewhere the line above has said it
        async with shown("all copies are complete", SETTLE_S) if scene.console.is_terminal else nullcontext():
            await scene.testbed.farm.observer.wait_quiet(scene.accounts, limit_s=SETTLE_S)
    except Hanging as error:
        scene.console.print(f"still in flight after {SETTLE_S:.0f} s: {error}", highlight=False, markup=False)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[asyncio.Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C interrupts at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    task = asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        for number in numbers:
            loop.add_signal_handler(number, on_signal)
    except (NotImplementedError, RuntimeError, ValueError):
        # not the main thread, or Windows: Ctrl-C raises KeyboardInterrupt instead
        yield stop
        return
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
