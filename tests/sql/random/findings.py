"""Examples on which the random test once failed, each shrunk to its shortest: the planner shall never fail on them
again."""

from typing import NamedTuple

from farm import Step


class Finding(NamedTuple):
    name: str
    followers: str
    choices: list[int]
    steps: list[Step]


FINDINGS = [
    Finding("a late reduction that the master had taken back", "HN", [0] * 24 + [7],
            [("open", 1, 0, 0), ("increase", 0, 0, 0), ("open", 1, 0, 0), ("done", 0, 0, 0), ("increase", 0, 0, 0),
             ("done", 0, 0, 0), ("open", 0, 1, 0), ("reduce", 0, 0, 0), ("flip", 1, 0, 0), ("done", 0, 0, 0),
             ("done", 0, 0, 0), ("open", 0, 0, 1), ("open", 0, 0, 1), ("open", 1, 0, 0), ("increase", 0, 0, 0),
             ("done", 1, 0, 0), ("increase", 0, 0, 0), ("refuse", 1, 0, 0), ("after_all", 0, 0, 0)]),
    Finding("a close dealt twice took the volume of another copy", "HN", [0] * 25,
            [("open", 0, 7, 1), ("mode", 0, 1, 0), *[("open", 0, 0, 0)] * 4, ("done", 0, 0, 0), ("done", 0, 0, 0),
             ("flip", 0, 1, 1), ("done", 0, 2, 0), ("refuse", 2, 0, 2), ("after_all", 2, 6, 7)]),
    Finding("a close dealt twice was taken for the user's own", "HN", [0] * 25,
            [("open", 0, 7, 1), ("mode", 0, 1, 0), *[("open", 0, 0, 0)] * 4, ("done", 0, 0, 0), ("done", 0, 0, 0),
             ("flip", 0, 0, 0), ("done", 0, 1, 1), ("refuse", 2, 0, 4), ("after_all", 2, 6, 7)]),
    Finding("the rest of an open of several orders did not shrink with its master", "N", [7] + [0] * 12,
            [*[("open", 0, 0, 0)] * 10, ("open", 1, 1, 0), ("reduce", 1, 0, 0)]),
    Finding("an increase waited behind a reduction that was given up for another copy's open", "N", [0] * 13,
            [*[("open", 0, 0, 0)] * 5, ("open", 1, 1, 0), ("reduce", 1, 0, 0), ("done", 0, 0, 0), ("done", 0, 0, 0),
             ("open", 0, 0, 0), ("increase", 1, 0, 1), ("move_there", 0, 0, 0)]),
    Finding("a master turned back before it was seen to have turned, and the copy was closed by hand", "HN", [0] * 25,
            [("open", 1, 1, 0), ("open", 0, 0, 0), ("reduce", 1, 0, 0), ("hold", 1, 0, 0), ("flip", 1, 0, 0),
             ("flip", 1, 0, 0),
             *[("open", 0, 0, 0)] * 4, ("done", 0, 0, 0), ("user_closes", 0, 0, 0)]),
    Finding("an increase was decided, and decided again, while a deal reduced the same copy", "N",
            [0] * 7 + [5] + [0] * 5,
            [*[("open", 0, 0, 0)] * 5, ("open", 1, 0, 0), ("flip", 1, 0, 1), ("done", 0, 0, 0), ("open", 0, 0, 0),
             ("reduce", 1, 0, 0), ("done", 0, 0, 0), ("increase", 1, 0, 1)]),
    Finding("the second of two copied orders was taken off again when it filled", "HC", [7, 0, 0, 0, 0, 4] + [0] * 7,
            [*[("open", 0, 0, 0)] * 10, ("order", 0, 2, 0), ("filled", 0, 0, 0)]),
    Finding("news of an order came after those of what it had become", "HN", [0] * 25,
            [*[("open", 0, 0, 0)] * 8, ("hold", 1, 0, 0), ("order", 1, 1, 0), ("filled", 1, 0, 0),
             ("reticket", 1, 0, 0)]),
    Finding("news of a position came after those of its second new ticket", "H", [0] * 13,
            [("hold", 1, 0, 0), ("open", 1, 2, 0), ("reticket", 1, 0, 0), *[("open", 0, 0, 0)] * 8,
             ("reticket", 1, 0, 0)]),
    Finding("a copier was switched off while its account was being flattened", "HC", [0] * 13,
            [("open", 0, 0, 0), *[("increase", 0, 0, 0)] * 5, ("late", 0, 0, 0), ("done", 0, 0, 0),
             ("flatten", 0, 0, 6),
             ("mode", 0, 2, 0), ("done", 0, 0, 0), ("done", 0, 0, 0)]),
    Finding("a copy was given another ticket before its open was found", "HC", [6] + [0] * 12,
            [("open", 0, 0, 0), ("level", 0, 0, 7), ("late", 0, 0, 0), ("done", 0, 3, 0), ("user_trims", 0, 0, 0)]),
    Finding("an increase was filled after all, with the levels of its time", "H", [0] * 13,
            [("open", 7, 0, 0), ("done", 0, 0, 0), ("increase", 5, 0, 0), ("expire", 0, 0, 0), ("level", 1, 0, 7),
             ("after_all", 0, 0, 0)]),
    Finding("a refused change of levels was forgotten when a reduction was filled", "H", [0] * 13,
            [("open", 0, 1, 0), ("done", 0, 0, 0), ("level", 0, 0, 1), ("refuse", 0, 0, 0), ("reduce", 0, 0, 0),
             ("done", 0, 0, 0)]),
]  # fmt: skip
