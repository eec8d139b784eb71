"""What a text of the product names must exist: documents, commands, make's targets, pages of the web."""

import re
from collections.abc import Iterator
from pathlib import Path

import click

from agent.cli import group

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("agent", "functions", "scripts", "supabase/schemas", "web/app", "web/components", "web/lib", "docs")
SUFFIXES = (".py", ".sql", ".ts", ".tsx", ".md")


def texts() -> Iterator[tuple[Path, str]]:
    files = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")]
    files += [file for place in PLACES for file in sorted((ROOT / place).rglob("*")) if file.suffix in SUFFIXES]
    for file in files:
        if not {"node_modules", ".next", "out"} & set(file.relative_to(ROOT).parts):
            yield file, file.read_text(encoding="utf-8")


TEXTS = dict(texts())


def missing(pattern: str, exists: object) -> list[str]:
    assert callable(exists)
    return [
        f"{file.relative_to(ROOT)}: {found[0]}"
        for file, text in TEXTS.items()
        for found in re.finditer(pattern, text)
        if not exists(found)
    ]


def anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_documents_exist_with_their_sections() -> None:
    def exists(found: re.Match[str]) -> bool:
        document = ROOT / found[1]
        return document.is_file() and (found[2] is None or found[2] in anchors(document))

    assert missing(r"\b(docs/[a-z0-9/_-]+\.md)(?:#([a-z0-9_-]+))?", exists) == []


def command_exists(words: list[str]) -> bool:
    """Whether the words lead to a command; what follows a command are its arguments."""
    command: click.Command = group
    for number, word in enumerate(words):
        if not isinstance(command, click.Group):
            return True
        with click.Context(command) as context:
            found = command.get_command(context, word)
        if found is None:
            return bool(number) and command.invoke_without_command
        command = found
    return True


def test_commands_exist() -> None:
    def exists(found: re.Match[str]) -> bool:
        words = [word for word in found[1].split() if word != "tradecopier"]
        return command_exists([word for word in words if re.fullmatch("[a-z]+", word)][:3])

    # two words at least: the first must be a command
    assert missing(r"[`/]tradecopier((?: [a-z]+)+)", exists) == []


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", TEXTS[ROOT / "Makefile"], re.MULTILINE))
    assert missing(r"`make ([a-z-]+)", lambda found: found[1] in targets) == []


def test_pages_exist() -> None:
    """No text sends anybody to a page that the web does not have."""
    app = ROOT / "web" / "app"
    routes = {part for file in app.rglob("page.tsx") for part in file.relative_to(app).parts[:-1]}
    names = "account|copier|trade|alert|setting|vps|monitoring"
    page = rf"(?:on|in|to|under|see|open) (?:(?:the|your|its|an?) )?({names})s?(?:'s)? page\b"
    assert missing(page, lambda found: {found[1], f"{found[1]}s"} & routes) == []


def test_pages_of_supabases_dashboard_exist() -> None:
    """Project Settings has General, Data API (the address), API Keys, …; there is no page called just API."""
    assert missing(r"Project Settings → API(?! keys)", lambda _: False) == []
