"""Reasons that are no refusals: there was nothing (left) to copy.

Made by `make api` from docs/errors.md. Do not edit.
"""

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
        "symbols_loading",
    }
)
