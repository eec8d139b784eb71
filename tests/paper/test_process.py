"""The broker as a process: it outlives its clients, stores its books on request, and never outlives its parent."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import psutil
import pytest

from agent.model import AccountId, ExecutionId, Login, Order, Placed
from agent.paper.client import PaperClient, PaperLost, ticket_of
from agent.paper.process import PaperProcess
from agent.paper.profile import Profile
from agent.platforms.adapter import LoginRefused
from agent.platforms.factory import PlatformFactory

D = Decimal
PRICES = {"EURUSD": (D("1.10000"), D("1.10010"))}

#: an agent that opens a position and then waits for its end
_AGENT = """
import asyncio, sys
from decimal import Decimal
from agent.model import AccountId, ExecutionId, Login, Order
from agent.platforms.factory import PlatformFactory

async def main(address, password):
    adapter = PlatformFactory().create("paper")
    login = Login(account_id=AccountId("a"), platform="paper", server="Paper", address=address, login="1001",
    password=password)
    await adapter.connect(login, lambda: 1)
    order = Order(tag=ExecutionId(77), kind="market", symbol="EURUSD", side="buy", lots=Decimal("0.30"))
    print(type(await adapter.place(order)).__name__, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(sys.argv[1], sys.stdin.readline().strip()))
"""
_PARENT = """
import asyncio
from agent.paper.process import PaperProcess

async def main():
    process = PaperProcess()
    await process.start()
    print(process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def wait_until_gone(pid: int) -> None:
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    await asyncio.to_thread(process.wait, 10)


async def test_an_agent_killed_with_9_finds_its_position_again() -> None:
    async with PaperProcess() as broker, await broker.client() as paper:
        await paper.open_book("1001")
        await paper.set_prices(PRICES)
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _AGENT, broker.address, stdin=PIPE, stdout=PIPE
        )
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdin.write(b"pw\n")
        async with asyncio.timeout(20):
            assert (await agent.stdout.readline()).strip() == b"Placed"
        agent.kill()
        await agent.wait()
        adapter = PlatformFactory().create("paper")
        login = Login(
            account_id=AccountId("a"),
            platform="paper",
            server="Paper",
            address=broker.address,
            login="1001",
            password="pw",
        )
        await adapter.connect(login, lambda: 1)
        try:
            (position,) = await adapter.positions()
        finally:
            await adapter.close()
        assert (position.tag, position.lots) == (77, D("0.30"))
        assert [record.outcome for record in (await paper.requests_by_tag("1001"))[77]] == ["executed"]


async def test_books_survive_a_killed_broker_when_they_are_kept(tmp_path: Path) -> None:
    broker = PaperProcess(data=tmp_path / "books")
    await broker.start()
    try:
        async with await broker.client() as paper:
            await paper.open_book(
                "1001", currency="EUR", leverage=50, profile=Profile(seed=5, commission_per_lot=D("3.5"))
            )
            await paper.open_book("1002", mode="netting")
            await paper.set_prices(PRICES)
            kept = ticket_of(await paper.market("1001", "EURUSD", "buy", D("0.50"), sl=D("1.09000")))
            closed = ticket_of(await paper.market("1001", "EURUSD", "sell", D("0.20")))
            await paper.close_position("1001", closed)
            await paper.limit("1002", "EURUSD", "buy", D("0.10"), D("1.09000"))
            before = [await paper.book(login) for login in ("1001", "1002")]
            requests, journal = await paper.requests("1001"), await paper.journal("1001")
        await broker.kill()
        address = broker.address
        await broker.start()
        assert broker.address == address
        async with await broker.client() as paper:
            assert [await paper.book(login) for login in ("1001", "1002")] == before
            assert await paper.requests("1001") == requests
            assert len(await paper.journal("1001")) == len(journal)
            new = ticket_of(await paper.market("1001", "EURUSD", "buy", D("0.10")))
            assert int(new) > int(closed) > int(kept)
    finally:
        await broker.stop()


async def test_a_broker_killed_in_a_burst_forgets_nothing_that_it_confirmed(tmp_path: Path) -> None:
    broker = PaperProcess(data=tmp_path / "books")
    await broker.start()
    adapter = PlatformFactory().create("paper")
    try:
        async with await broker.client() as paper:
            await paper.open_book("1001", balance=D(1_000_000))
            await paper.set_prices(PRICES)
        login = Login(
            account_id=AccountId("a"),
            platform="paper",
            server="Paper",
            address=broker.address,
            login="1001",
            password="pw",
        )
        await adapter.connect(login, lambda: 1)
        orders = [
            Order(tag=ExecutionId(tag), kind="market", symbol="EURUSD", side="buy", lots=D("0.01"))
            for tag in range(1, 301)
        ]
        placing = [asyncio.create_task(adapter.place(order)) for order in orders]
        async with asyncio.timeout(20):
            await placing[20]
        await broker.kill()
        results = await asyncio.gather(*placing)
        await broker.start()
        async with await broker.client() as paper:
            requests = await paper.requests_by_tag("1001")
            book = await paper.book("1001")
        confirmed = {order.tag for order, result in zip(orders, results, strict=True) if isinstance(result, Placed)}
        executed = {tag for tag, records in requests.items() if records[0].outcome == "executed"}
        assert len(confirmed) >= 21
        assert confirmed <= executed == {position.tag for position in book.positions}
        assert all(len(records) == 1 for records in requests.values())
    finally:
        await adapter.close()
        await broker.stop()


async def test_a_client_hears_that_the_broker_died() -> None:
    async with PaperProcess() as broker:
        paper = await broker.client()
        await broker.kill()
        with pytest.raises(PaperLost):
            await paper.books()
        await paper.close()
        with pytest.raises(ConnectionRefusedError):
            await PaperClient.connect(broker.address, broker.token)


async def test_the_broker_dies_with_its_parent() -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", _PARENT, stdout=PIPE)
    assert parent.stdout is not None
    async with asyncio.timeout(20):
        pid = int(await parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    await parent.wait()
    await wait_until_gone(pid)


async def test_stopping_leaves_nothing_and_may_be_repeated() -> None:
    broker = PaperProcess()
    await broker.start()
    pid = broker.pid
    await broker.stop()
    await broker.stop()
    assert not psutil.pid_exists(pid)


async def test_the_token_is_on_no_command_line() -> None:
    async with PaperProcess() as broker:
        assert broker.token not in " ".join(psutil.Process(broker.pid).cmdline())


async def test_a_port_that_is_taken_is_said_clearly() -> None:
    async with PaperProcess() as broker:
        taken = int(broker.address.rpartition(":")[2])
        with pytest.raises(PaperLost, match="did not start"):
            await PaperProcess(port=taken).start()


async def command(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from agent.cli import main; main()", "paper", *arguments, stdout=PIPE, stderr=PIPE
    )


async def printed(process: asyncio.subprocess.Process, lines: int) -> dict[str, str]:
    """The first lines that the command printed, as label → value."""
    assert process.stdout is not None
    async with asyncio.timeout(20):
        texts = [(await process.stdout.readline()).decode() for _ in range(lines)]
    return {text[:15].strip(): text[15:].strip() for text in texts}


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_serves_a_user_s_account_until_it_is_interrupted(number: signal.Signals) -> None:
    process = await command()
    said = await printed(process, 2)
    adapter = PlatformFactory().create("paper")
    login = Login(
        account_id=AccountId("a"),
        platform="paper",
        server="Paper",
        address=said["paper broker"],
        login="mine",
        password="my own",
        currency="EUR",
        settings={"paper": {"balance": "5000", "leverage": 30}},
    )
    state = await adapter.connect(login, lambda: 1)
    assert (state.balance, state.currency, state.leverage) == (D(5000), "EUR", 30)
    order = Order(tag=ExecutionId(1), kind="market", symbol="EURUSD", side="buy", lots=D("0.10"))
    assert isinstance(await adapter.place(order), Placed)
    process.send_signal(number)
    output, errors = await process.communicate()
    await adapter.close()
    assert process.returncode == 0
    assert b"paper broker stopped" in output
    assert errors == b""


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process there")
async def test_the_command_keeps_books_and_token(tmp_path: Path) -> None:
    tokens = []
    for _ in range(2):
        process = await command("--data", str(tmp_path), "--no-feed")
        said = await printed(process, 2)
        tokens.append(said["token"])
        async with await PaperClient.connect(said["paper broker"], said["token"]) as paper:
            if not await paper.books():
                await paper.open_book("1001", balance=D(123))
            assert (await paper.book("1001")).balance == D(123)
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert tokens[0] == tokens[1]
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0


async def test_a_second_broker_on_one_folder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    first = PaperProcess(data=tmp_path)
    await first.start()
    try:
        async with await first.client() as paper:
            await paper.open_book("1001", balance=D(123))
        second = await command("--data", str(tmp_path), "--no-feed")
        async with asyncio.timeout(20):
            _, errors = await second.communicate()
        assert second.returncode == 1
        assert b"TC620: another paper broker is using the folder" in errors
        assert errors.count(b"\n") == 1
        await first.kill()
        await first.start()
        async with await first.client() as paper:
            assert (await paper.book("1001")).balance == D(123)
    finally:
        await first.stop()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
async def test_books_are_readable_for_their_owner_only(tmp_path: Path) -> None:
    (tmp_path / "books.sqlite3").touch(0o644)
    async with PaperProcess(data=tmp_path) as broker, await broker.client() as paper:
        await paper.open_book("1001")
        modes = {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()}
    assert modes["books.sqlite3"] == "0o600"
    assert set(modes.values()) == {"0o600"}


async def test_a_taken_port_is_one_readable_line() -> None:
    async with PaperProcess() as broker:
        process = await command("--port", broker.address.rpartition(":")[2])
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"choose another --port" in errors
    assert b"Traceback" not in errors


async def test_kept_passwords_are_hashes_and_hold_after_a_restart(tmp_path: Path) -> None:
    broker = PaperProcess(data=tmp_path / "books")
    await broker.start()
    login = Login(
        account_id=AccountId("a"), platform="paper", server="Paper", address=broker.address, login="1001",
        password="open sesame",
        settings={"paper": {"balance": "1"}},
    )  # fmt: skip
    adapter = PlatformFactory().create("paper")
    try:
        await adapter.connect(login, lambda: 1)
        async with await broker.client() as paper:
            await paper.open_book("1002")
        await broker.kill()
        kept = b"".join(file.read_bytes() for file in (tmp_path / "books").iterdir())
        assert b"1001" in kept
        assert b"sesame" not in kept
        await broker.start()
        with pytest.raises(LoginRefused):
            await adapter.connect(replace(login, password="guess"), lambda: 1)
        await adapter.connect(login, lambda: 1)
    finally:
        await adapter.close()
        await broker.stop()
