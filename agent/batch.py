"""How much goes into one call: less after the database has cut one off, little by little more after each that went well."""


class BatchSize:
    def __init__(self, most: int) -> None:
        self._most = most
        self.limit = most

    def cut_off(self, size: int) -> None:
        """A call of this size took longer than a statement may."""
        self.limit = max(1, min(self.limit, size // 2))

    def went_well(self) -> None:
        self.limit = min(self._most, self.limit + max(1, self.limit // 4))
