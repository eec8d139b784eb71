"""Errors for people: what happened, to what, and what to do."""


class Failure(Exception):
    """Ends a command with one line of text and a non-zero exit status.

    `what` says what happened and to what, `fix` what to do; `code` is a code of docs/errors.md.
    """

    def __init__(self, what: str, fix: str, *, code: str | None = None, exit_status: int = 1) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.code = code
        self.exit_status = exit_status

    def __str__(self) -> str:
        prefix = f"{self.code}: " if self.code else ""
        return f"{prefix}{self.what} → {self.fix}"

    def at(self, where: str) -> "Failure":
        """The same failure with `where` (a place in a file) in front."""
        return Failure(f"{where}: {self.what}", self.fix, code=self.code, exit_status=self.exit_status)
