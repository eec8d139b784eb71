"""Strict reading of YAML: every scalar is the text as written, every error has its file and line."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

import yaml

from agent.failure import Failure

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)\Z")
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s)\Z")
LARGEST_FILE = 1_000_000


class GrammarError(Failure):
    """A scenario file that does not follow the grammar; `where` is file:line, `message` says what is there and what is
    expected."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}", "correct that line; no scenario was run", code="TC640")


@dataclass(frozen=True, slots=True)
class Node:
    """One YAML node and its file. Types are never guessed: `1.0` is the text "1.0"."""

    path: str
    yaml: yaml.Node

    @property
    def line(self) -> int:
        return int(self.yaml.start_mark.line) + 1

    def fault(self, message: str) -> GrammarError:
        return GrammarError(f"{self.path}:{self.line}", message)

    def is_null(self) -> bool:
        return (
            isinstance(self.yaml, yaml.ScalarNode) and self.yaml.style is None and self.yaml.value in ("", "~", "null")
        )

    def is_list(self) -> bool:
        return isinstance(self.yaml, yaml.SequenceNode)

    def is_plain(self) -> bool:
        """Whether it is a scalar without quotes, so that `true` may be a switch and `1` a number."""
        return isinstance(self.yaml, yaml.ScalarNode) and self.yaml.style is None

    def entries(self, what: str, allowed: Iterable[str] | None = None) -> dict[str, "Node"]:
        """The entries of a mapping; refuses a key that is not allowed or appears twice."""
        if not isinstance(self.yaml, yaml.MappingNode):
            raise self.fault(f"{what} must be a mapping, like {{key: value}}")
        known = None if allowed is None else tuple(allowed)
        found: dict[str, Node] = {}
        for key, value in self.yaml.value:
            key_node = Node(self.path, key)
            name = key_node.text(f"a key of {what}")
            if name in found:
                raise key_node.fault(f"{name!r} appears twice in {what}")
            if known is not None and name not in known:
                raise key_node.fault(f"{what} has no key {name!r}; the known keys are {', '.join(known)}")
            found[name] = Node(self.path, value)
        return found

    def items(self, what: str) -> list["Node"]:
        if not isinstance(self.yaml, yaml.SequenceNode):
            raise self.fault(f"{what} must be a list, like [a, b]")
        return [Node(self.path, item) for item in self.yaml.value]

    def text(self, what: str) -> str:
        if not isinstance(self.yaml, yaml.ScalarNode) or not self.yaml.value.strip():
            raise self.fault(f"{what} must be a text")
        return str(self.yaml.value)

    def choice(self, what: str, choices: Iterable[str]) -> str:
        value, known = self.text(what), tuple(choices)
        if value not in known:
            raise self.fault(f"{what} is {value!r}; it must be one of {', '.join(known)}")
        return value

    def number(self, what: str, *, least: Decimal | None = None, above: Decimal | None = None) -> Decimal:
        """A decimal number exactly as written (no exponent, no underscore, no conversion to a binary float)."""
        value = self.text(what)
        if not NUMBER.match(value):
            raise self.fault(f"{what} is {value!r}; it must be a decimal number")
        number = Decimal(value)
        if least is not None and number < least:
            raise self.fault(f"{what} is {value}; it must be at least {least}")
        if above is not None and number <= above:
            raise self.fault(f"{what} is {value}; it must be more than {above}")
        return number

    def whole(self, what: str, *, least: int) -> int:
        value = self.text(what)
        if not value.isascii() or not value.isdigit() or int(value) < least:
            raise self.fault(f"{what} is {value!r}; it must be a whole number of at least {least}")
        return int(value)

    def seconds(self, what: str) -> float:
        """A duration such as 3s or 500ms, in seconds."""
        match = DURATION.match(self.text(what))
        if match is None:
            raise self.fault(f"{what} is {self.text(what)!r}; it must be a time such as 3s or 500ms")
        return float(match[1]) / (1000 if match[2] == "ms" else 1)


def read_document(path: str, content: str) -> Node:
    """The single YAML document of the file. Raises `GrammarError`."""
    if len(content) > LARGEST_FILE:
        raise GrammarError(f"{path}:1", "the file is larger than 1 MB; a scenario has a page or two")
    try:
        document = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise GrammarError(f"{path}:{line}", f"this is not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise GrammarError(f"{path}:1", f"this is not YAML: {str(error).splitlines()[0]}") from None
    if document is None:
        raise GrammarError(f"{path}:1", "the file is empty; a scenario has name, accounts and steps")
    return Node(path, document)
