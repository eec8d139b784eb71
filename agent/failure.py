"""Errors that a person reads: what happened, to what, and what to do about it."""


class Failure(Exception):
    """Ends a command with one readable line and a non-zero status.

    `what` says what happened and to what; `mend` what to do; `code` is a code of docs/errors.md.
    """

    def __init__(self, what: str, mend: str, *, code: str | None = None, exit_status: int = 1) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend
        self.code = code
        self.exit_status = exit_status

    def __str__(self) -> str:
        prefix = f"{self.code}: " if self.code else ""
        return f"{prefix}{self.what} → {self.mend}"

    def at(self, where: str) -> "Failure":
        """The same, with the place in a file that it is about."""
        return Failure(f"{where}: {self.what}", self.mend, code=self.code, exit_status=self.exit_status)
