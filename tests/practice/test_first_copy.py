"""docs/first-copy.md, executed: the lines of the document itself, as a person would type them."""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent import cli
from agent.practice.desk import Desk
from agent.stack.schema import project_root
from agent.testbed.waiting import wait_for

pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(sys.platform == "win32", reason="signals")]

DOCUMENT = (project_root() / "docs" / "first-copy.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.splitlines()]
TRADECOPIER = [sys.executable, "-c", "from agent.cli import main; main()"]


def typed(line: str) -> list[str]:
    program, *arguments = shlex.split(line)
    assert program == ".venv/bin/tradecopier"
    return [*TRADECOPIER, *arguments]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The data folder instead of the checkout's own, in which another stack may run."""
    return {**os.environ, "TRADECOPIER_STACK_DIR": str(tmp_path_factory.mktemp("first") / "stack"), "COLUMNS": "40"}


@pytest.fixture(scope="module")
def printed(environment: dict[str, str]) -> Iterator[list[str]]:
    """What `up`, the first line of the document, prints; it ends on Ctrl-C and leaves nothing running."""
    with subprocess.Popen(typed(LINES[0]), env=environment, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        lines = []
        try:
            for line in up.stdout:
                lines.append(line.rstrip("\n"))
                if lines[-1] == "Ctrl-C stops it.":
                    break
            family = psutil.Process(up.pid).children(recursive=True)
            yield lines
            os.kill(up.pid, signal.SIGINT)
            assert up.wait(60) == 0
            assert psutil.wait_procs(family, timeout=10)[1] == []
        finally:
            up.kill()


@pytest.fixture
def careful(environment: dict[str, str], printed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The practice account `careful` is connected; commands of this process find the stack."""
    monkeypatch.setenv("TRADECOPIER_STACK_DIR", environment["TRADECOPIER_STACK_DIR"])
    if "careful" not in _asked:
        assert cli.run(["paper", "account", "add", "careful"]) == 0
        _asked.add("careful")


_asked: set[str] = set()


def succeeded(line: str, environment: dict[str, str]) -> str:
    done = subprocess.run(typed(line), env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout


def test_the_document_copies_a_trade_in_at_most_ten_lines(environment: dict[str, str], printed: list[str]) -> None:
    assert printed[0] == "The stack is running."
    assert len(LINES) <= 10
    said = [succeeded(line, environment) for line in LINES[1:]]
    assert re.fullmatch(r"master is connected: 10,000.00 USD, hedging\n", said[0])
    assert re.fullmatch(r"follower copies master from now on\n", said[2])
    assert re.fullmatch(
        r"master: bought 0.10 EURUSD at [0-9.]+, position \d+\ncopied to follower: bought 0.05 EURUSD at [0-9.]{3,7}\n",
        said[3],
    )
    assert re.search(r"follower +\d+ +▲ buy +EURUSD +0.05 ", said[4])
    assert re.search(r"copied to follower: levels of EURUSD set\n", said[5])
    assert re.search(r"copied to follower: closed 0.05 EURUSD at [0-9.]+\n", said[6])


def test_each_value_stands_alone_on_its_line_whatever_the_terminals_width(printed: list[str]) -> None:
    [page] = [printed[n + 1] for n, line in enumerate(printed) if line.startswith("Page: ")]
    assert re.fullmatch(r"http://127.0.0.1:\d+/", page)
    for pattern in (r"sb_publishable_[\w-]+", r"sb_secret_[\w-]+", r"postgresql://\S+", r"trader@example\.com"):
        assert [line for line in printed if re.fullmatch(pattern, line)], pattern


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("paper buy nobody EURUSD 0.10", r"TC671: there is no practice account nobody.* → open it with"),
        ("paper buy careful NOSUCH 0.10", r"TC672: .*The account has no such symbol: NOSUCH → choose one of .*EURUSD"),
        ("paper buy careful EURUSD 0.001", r"TC672: .*volume.* → choose 0.01 to 100 lots in steps of 0.01"),
        ("paper buy careful EURUSD 99", r"TC672: .*Not enough free margin.* → choose fewer lots"),
        ("paper buy careful EURUSD lots", r"'lots' is not a number above 0"),
        ("paper buy careful EURUSD NaN", r"'NaN' is not a number above 0"),
        ("paper close careful", r"TC671: careful holds no position → open one with"),
        ("paper close careful 77", r"TC671: careful holds no position → open"),
        ("paper modify careful", r"give --sl, --tp or both"),
        ("paper account add Careful", r"TC672: the practice account Careful exists already"),
        ("copier add careful nobody", r"TC671: there is no practice account nobody"),
        ("copier add careful careful", r"."),
    ],
)
def test_a_mistake_is_one_readable_line(
    careful: None, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    assert cli.run(shlex.split(line)) in (1, 2)
    shown = capsys.readouterr()
    assert shown.out in ("", "careful is connected: 10,000.00 USD, hedging\n")
    assert shown.err.count("\n") == 1
    assert re.search(said, shown.err)


def test_an_account_that_the_broker_refuses_is_not_waited_for(
    environment: dict[str, str], careful: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody changed the password at the broker: the agent's login fails, and a trade would not be copied."""
    assert cli.run(["paper", "account", "add", "spoilt"]) == 0

    async def change_password() -> None:
        async with Desk.open(Path(environment["TRADECOPIER_STACK_DIR"])) as desk:
            await desk.broker.set_passwords("spoilt", password="another")
            await desk.broker.disconnect("spoilt")

            async def look() -> bool | None:
                return (await desk.account("spoilt")).status == "halted" or None

            assert await wait_for("spoilt is halted", look, 60)

    asyncio.run(change_password())
    capsys.readouterr()
    assert cli.run(["paper", "buy", "spoilt", "EURUSD", "0.10"]) == 1
    assert re.search(r"TC673: spoilt is halted", capsys.readouterr().err)


def test_without_a_stack_the_commands_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["paper", "account", "list", "--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"tradecopier: TC670: no stack is running in {tmp_path} → start one with `tradecopier up` in another terminal\n"
    )
