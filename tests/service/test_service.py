"""The whole agent as a process on the embedded stack: enrolment, connection, memory use, clean stop."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import pytest_asyncio

from agent.command.doctor import examine
from agent.stack.database import Database
from agent.stack.postgres import PostgresServer
from agent.testbed.farm import Farm, Opening, Vps

if TYPE_CHECKING:
    from agent.stack.stack import Stack

COMMAND = [sys.executable, "-c", "from agent.cli import main; main()"]
MOST_MB = 120


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(
    postgres_server: PostgresServer, template_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator["Stack"]:
    """One stack for all tests of this module; each test has its own VPS and accounts."""
    from agent.stack.stack import Stack

    database = Database.create(postgres_server, f"service_{os.getpid()}", template_database)
    async with Stack(tmp_path_factory.mktemp("service") / "stack", database=database) as running:
        yield running
    database.drop()


@pytest_asyncio.fixture(loop_scope="module")
async def farm(site: "Stack", tmp_path: Path) -> AsyncIterator[Farm]:
    async with Farm(site, tmp_path / "farm") as running:
        yield running


def process_of(vps: Vps) -> psutil.Process:
    assert vps.child is not None
    [agent] = [child for child in psutil.Process(vps.child.pid).children(recursive=True) if "run" in child.cmdline()]
    return agent


def events_of(vps: Vps) -> list[str]:
    return [json.loads(line)["event"] for line in vps.log.read_text().splitlines() if line.startswith("{")]


async def test_an_agent_with_ten_accounts_is_small_and_stops_cleanly(
    site: "Stack", farm: Farm, capsys: pytest.CaptureFixture[str]
) -> None:
    [vps] = await farm.add_vpses(["small"])
    user, _ = await site.create_user("ten@example.test")
    accounts = [await farm.open_account(Opening(name=f"a{n}", login=str(500 + n)), user, vps) for n in range(10)]
    await farm.wait_connected(accounts)
    agent = process_of(vps)
    resident = agent.memory_info().rss / 2**20
    with capsys.disabled():
        sys.stdout.write(f"\nagent with 10 paper accounts: {resident:.1f} MB RSS\n")
    assert resident <= MOST_MB
    agent.send_signal(signal.SIGTERM)
    await asyncio.to_thread(agent.wait, 20)
    events = events_of(vps)
    assert events[-1] == "agent_stopped"
    assert "drain_cut_short" not in events
    assert events.count("account_connected") == 10


async def test_a_second_agent_on_the_same_data_is_refused(farm: Farm) -> None:
    [vps] = await farm.add_vpses(["only"])
    second = await asyncio.to_thread(run, vps.data_dir, "agent", "run")
    assert second.returncode == 1
    assert "TC613: another agent already runs" in second.stderr


async def test_an_agent_killed_and_started_again_is_joined_again(site: "Stack", farm: Farm) -> None:
    [vps] = await farm.add_vpses(["killed"])
    user, _ = await site.create_user("one@example.test")
    account = await farm.open_account(Opening(name="a", login="600"), user, vps)
    await farm.wait_connected([account])
    before = await farm.session(account)
    farm.kill(vps)
    assert vps.child is not None
    await asyncio.to_thread(vps.child.stop)
    farm.start(vps)
    await farm.wait_online(vps)
    async with asyncio.timeout(20):
        while await farm.session(account) == before:
            await farm.wait_connected([account])
    assert await farm.session(account) == before + 1


async def test_a_retired_identity_ends_the_agent_with_a_fix(farm: Farm) -> None:
    [vps] = await farm.add_vpses(["forged"])
    assert vps.child is not None
    await asyncio.to_thread(vps.child.stop)
    file = vps.data_dir / "agent.json"
    identity = json.loads(file.read_text())
    file.write_text(json.dumps({**identity, "agent_secret": "x" * 40}))
    refused = await asyncio.to_thread(run, vps.data_dir, "agent", "run")
    assert refused.returncode == 1
    assert "TC612" in refused.stderr
    assert "tradecopier agent enroll" in refused.stderr
    assert "x" * 40 not in refused.stderr


async def test_the_doctor_finds_no_fault_with_an_enrolled_agent(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    [vps] = await farm.add_vpses(["well"])
    for name in [name for name in os.environ if name.startswith("TRADECOPIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRADECOPIER_DATA_DIR", str(vps.data_dir))
    checks = await asyncio.to_thread(lambda: list(examine()))
    assert [check.line() for check in checks if not check.ok] == []
    assert [check.name for check in checks][-4:] == ["clock", "key", "sign-in", "realtime"]


def run(data_dir: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRADECOPIER_")}
    environment["TRADECOPIER_DATA_DIR"] = str(data_dir)
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
