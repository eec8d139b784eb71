"""Reasons that are no refusals (docs/errors.md, "Nothing to do"): there was nothing left to copy."""

#: kept equal to that section by a test
NOTHING_TO_DO: frozenset[str] = frozenset()
