"""SQL text together with the values of its placeholders."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Sql:
    """A piece of a statement. `text` has one `%s` for each of `values`, which travel apart from it."""

    text: str
    values: tuple[object, ...] = ()

    def __add__(self, other: "Sql | str") -> "Sql":
        if isinstance(other, str):
            return Sql(self.text + other, self.values)
        return Sql(self.text + other.text, self.values + other.values)

    def __radd__(self, before: str) -> "Sql":
        return Sql(before + self.text, self.values)

    def __bool__(self) -> bool:
        return bool(self.text)


NOTHING: Final = Sql("")


def value(of: object) -> Sql:
    """A placeholder. A string is sent without a type, so that Postgres infers it from the context."""
    return Sql("%s", (without_nul(of) if isinstance(of, str) else of,))


def identifier(*names: str) -> Sql:
    """A quoted name, qualified by those before it: `"public"."trades"`."""
    return Sql(".".join('"' + without_nul(name).replace('"', '""').replace("%", "%%") + '"' for name in names))


def literal(text: str) -> Sql:
    """A quoted string constant, for text that comes from the database itself."""
    quoted = "'" + without_nul(text).replace("'", "''").replace("%", "%%") + "'"
    return Sql("E" + quoted.replace("\\", "\\\\") if "\\" in quoted else quoted)


def joined(parts: Iterable[Sql], separator: str = ", ") -> Sql:
    """The parts with a separator between them."""
    found = list(parts)
    return Sql(separator.join(part.text for part in found), tuple(v for part in found for v in part.values))


def without_nul(text: str) -> str:
    """The text up to its first NUL, which Postgres cannot store."""
    return text.partition("\0")[0]
