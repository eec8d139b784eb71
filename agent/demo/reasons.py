"""Reasons that are no refusals: there was nothing (left) to copy, and nothing was withheld from the user."""

#: the codes of docs/errors.md, "Nothing to do" (a test compares them)
NOTHING_TO_DO: frozenset[str] = frozenset(
    {
        "already_closed",
        "closed",
        "closed_by_follower",
        "coalesced",
        "copied_at_fill",
        "existing",
        "master_never_filled",
        "no_change",
        "not_copied",
        "order_expired",
        "released",
        "residual_hold",
        "stop_out",
        "superseded",
    }
)
