"""The number of items per call: halved when the database cuts a call off, raised step by step after each success."""


class BatchSize:
    def __init__(self, most: int) -> None:
        self._most = most
        self.limit = most

    def cut_off(self, size: int) -> None:
        """A call with `size` items exceeded the database's statement timeout."""
        self.limit = max(1, min(self.limit, size // 2))

    def went_well(self) -> None:
        self.limit = min(self._most, self.limit + max(1, self.limit // 4))
