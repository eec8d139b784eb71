"""Reads the small language of PostgREST's query parameters from left to right."""

import re
from typing import Final, NoReturn

from agent.stack.rest.refusal import Refused

_NAME: Final = re.compile(r"[\w $]+(?:-(?!>)[\w $]+)*")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
# more digits are the name of a key: no array of Postgres is so long
_INDEX: Final = re.compile(r"(-?[0-9]{1,9})(?=->|::|[.,)]|\Z)")
_WHOLE: Final = re.compile(r"-?[0-9]+")
_MOST: Final = 10**18
_IDENTIFIER: Final = re.compile(r"[\w $]+")

#: levels of parentheses: each is a call of a function here, and a subquery in Postgres
DEEPEST: Final = 30

#: steps of a JSON path: (`->` or `->>`, key or index)
JsonPath = tuple[tuple[str, str | int], ...]


class Scanner:
    """A position in a text. `what` names the parameter in error messages (PGRST100)."""

    def __init__(self, text: str, what: str) -> None:
        self.text = text
        self.at = 0
        self._depth = 0
        self._what = what

    def fail(self, expected: str) -> NoReturn:
        """Refuse the text at this position. Raises Refused."""
        found = f'"{self.text[self.at]}"' if self.at < len(self.text) else "end of input"
        raise Refused(
            400,
            "PGRST100",
            f'"failed to parse {self._what} ({self.text})" (line 1, column {self.at + 1})',
            details=f"unexpected {found} expecting {expected}",
        )

    def deeper(self) -> None:
        """Read an opening parenthesis. Refuses nesting that no honest request has."""
        self.need("(")
        self._depth += 1
        if self._depth > DEEPEST:
            self.fail(f"at most {DEEPEST} levels of parentheses")

    def higher(self) -> None:
        """Read the closing parenthesis."""
        self.need(")")
        self._depth -= 1

    @property
    def done(self) -> bool:
        """Whether everything was read."""
        return self.at >= len(self.text)

    def end(self) -> None:
        """The text must end here."""
        if not self.done:
            self.fail("end of input")

    def looking_at(self, token: str) -> bool:
        """Whether the token stands here; reads nothing."""
        return self.text.startswith(token, self.at)

    def take(self, token: str) -> bool:
        """Read the token if it stands here."""
        if not self.looking_at(token):
            return False
        self.at += len(token)
        return True

    def need(self, token: str) -> None:
        """Read the token, or fail."""
        if not self.take(token):
            self.fail(f'"{token}"')

    def match(self, pattern: re.Pattern[str]) -> str | None:
        """Read what the pattern matches here, or nothing."""
        found = pattern.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        return found[0]

    def spaces(self) -> None:
        """Skip blanks."""
        while not self.done and self.text[self.at] in " \t\n\r":
            self.at += 1

    def name(self) -> str:
        """A field name: letters, digits, blanks, `_`, `$`, `-`; or anything in double quotes."""
        if self.looking_at('"'):
            return self.quoted()
        found = self.match(_NAME)
        if found is None or not found.strip():
            self.fail("field name (* or [a..z0..9_$])")
        return found.strip()

    def quoted(self) -> str:
        """A text in double quotes; a back-slash takes the next letter as it is."""
        found = self.match(_QUOTED)
        if found is None:
            self.fail('closing "\\""')
        return _unescaped(found)

    def quoted_value(self) -> str | None:
        """A value in double quotes that ends at a comma, a parenthesis or the end; otherwise it reads nothing."""
        start = self.at
        found = self.match(_QUOTED)
        if found is None or not (self.done or self.text[self.at] in ",)"):
            self.at = start
            return None
        return _unescaped(found)

    def identifier(self) -> str:
        """A type or a language, which stands in a statement without quotes: only letters, digits, blanks, `_`, `$`."""
        found = self.match(_IDENTIFIER)
        if found is None or not found.strip():
            self.fail("letter or digit")
        return found.strip()

    def json_path(self) -> JsonPath:
        """`->key`, `->0` and `->>key`, as many as there are."""
        steps: list[tuple[str, str | int]] = []
        while self.looking_at("->"):
            arrow = "->>" if self.take("->>") else "->"
            if arrow == "->":
                self.need("->")
            index = self.match(_INDEX)
            steps.append((arrow, int(index) if index is not None else self.name()))
        return tuple(steps)


def whole_number(text: str) -> int | None:
    """The number, cut to what Postgres can count; None if the text is none."""
    if _WHOLE.fullmatch(text) is None:
        return None
    return int(text) if len(text) <= len(str(_MOST)) else -_MOST if text.startswith("-") else _MOST


def _unescaped(quoted: str) -> str:
    return re.sub(r"\\(.)", r"\1", quoted[1:-1], flags=re.DOTALL)
