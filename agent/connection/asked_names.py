"""Which symbols to tell first: those that the database asked for, and those that may be meant by them."""

from collections.abc import Iterable


def asked_first(untold: Iterable[str], asked: Iterable[str]) -> list[str]:
    """`untold` in order, names that contain an asked name first. Only letters and digits count, in either case: a
    copy that waits for `ZZTOP` may need `zz.top-r`."""
    wanted = {letters for letters in map(_letters, asked) if letters}
    return sorted(untold, key=lambda name: not any(letters in _letters(name) for letters in wanted))


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
