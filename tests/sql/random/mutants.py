"""Copies of the planner with one small fault each, and for each the shortest example that shows it, found by the random
test."""

import random
import re
from dataclasses import dataclass

from farm import GUARDED, Step, how_many_choices, verbs
from quiet_world import QuietWorld

OPEN: Step = ("open", 0, 0, 0)
#: of the second master, whose settings a third group of numbers chooses
OPEN2: Step = ("open", 1, 1, 0)
DONE: Step = ("done", 0, 0, 0)
CLOSE: Step = ("close", 0, 0, 0)
FLATTEN: Step = ("flatten", 0, 0, 7)
LATE_FILL: list[Step] = [
    OPEN,
    ("expire", 0, 0, 0),
    ("late", 0, 0, 0),
    OPEN,
    ("after_all", 0, 0, 0),
    ("partial", 0, 0, 0),
]
NEW_GENERATION = (
    "(select coalesce(max(n.generation), 0) + 1 from public.position_links n"
    " where n.copier_id = c.id and n.master_account_id = x.master and n.master_ticket = x.ticket)"
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """`private.<function>` with other words in places that are there once. `sizing`: which of the SIZINGS either copier
    has."""

    name: str
    function: str
    changes: tuple[tuple[str, str], ...]
    followers: str
    steps: list[Step]
    sizing: tuple[int, int] = (0, 0)
    #: a handful of random plays is enough to meet it
    common: bool = False
    #: the first choice, which is about the followers' symbols and limits
    symbols: int = 0

    @property
    def choices(self) -> list[int]:
        first, second = self.sizing
        return [self.symbols, first, 0, 0, 0, 0, 0, second, 0, 0, 0, 0, 0]

    def source(self, world: QuietWorld) -> str:
        source = str(world.one("select pg_get_functiondef(%s::regproc)", f"private.{self.function}"))
        for right, wrong in self.changes:
            found = re.findall(r"\s+".join(map(re.escape, right.split())), source)
            assert len(found) == 1, f"{self.function} has changed: choose another place for {self.name!r}"
            source = source.replace(found[0], wrong)
        return source


MUTANTS = [
    # which order waits for which
    Mutant("a flip's open does not wait for its close", "decide_kinds",
           (("case when pair.kind = 'flip' then pair.close_step end", "null"),), "H",
           [OPEN, DONE, ("flip", 0, 0, 0), ("done", 1, 0, 0)]),
    Mutant("a close beside an open does not name it", "plan_links",
           (("select null, step.open_step, 'close'", "select null, null::bigint, 'close'"),), "H",
           [OPEN, CLOSE], common=True),
    Mutant("an increase is decided beside a step in flight", "undecided",
           (("l.resync_lots is not null) and f.executions = 0", "l.resync_lots is not null)"),), "H",
           [OPEN, ("level", 0, 0, 1), ("increase", 0, 0, 0)]),
    # comparisons
    Mutant("a reduction by exactly the least is left out", "plan_links",
           (("state.position_lots - state.target_lots >=", "state.position_lots - state.target_lots >"),), "H",
           [("open", 0, 7, 0), ("reticket", 0, 0, 0)], sizing=(4, 0)),
    Mutant("an increase by nothing", "undecided", (("(m.lots > l.seen_master_lots or",
                                                    "(m.lots >= l.seen_master_lots or"),), "H",
           [OPEN], sizing=(6, 0), common=True),
    Mutant("closed after one look", "apply_snapshot", (("m.absent_snapshots >= 2", "m.absent_snapshots >= 1"),), "H",
           [OPEN, ("blink", 0, 0, 0)]),
    Mutant("an older number overrules a newer", "apply_position", (("(o.session, o.seq) >=", "(o.session, o.seq) ="),),
           "H",
           [OPEN, ("late", 0, 0, 0), DONE, ("user_closes", 0, 0, 0)]),
    Mutant("a deal over the maximum", "plan_net", (("least(abs(v_target.sum), v_max)",
                                                    "greatest(abs(v_target.sum), v_max)"),), "N",
           [OPEN], common=True),
    Mutant("a late fill explains only what was before it", "undo_surprises",
           (("::timestamptz >= q.queued_at", "::timestamptz < q.queued_at"),), "N", LATE_FILL, sizing=(5, 0)),
    Mutant("a stop on the net position is taken from the other side", "book_net",
           (("= -sign(v_change)", "= sign(v_change)"),), "N", [OPEN, ("done", 0, 0, 0), ("user_deals", 6, 0, 0)],
           common=True),
    # volumes
    Mutant("a reduction is rounded to the nearest", "target_lots",
           (("div(p_base * p_master_now, p_master_base * p_step)",
             "round(p_base * p_master_now / (p_master_base * p_step))"),),
           "H", [("open", 0, 1, 0), ("reduce", 0, 0, 0)], sizing=(3, 0), common=True),
    Mutant("an open is rounded to the nearest", "size_order",
           (("div(v_num, v_den * s.lots_step)", "round(v_num / (v_den * s.lots_step))"),), "H", [OPEN], sizing=(3, 0)),
    Mutant("the last of a copy is taken", "target_lots", ((", p_min)", ", 0)"),), "H",
           [OPEN2, ("reduce", 1, 0, 0)], sizing=(0, 4)),
    Mutant("a reduction aims at another volume", "target_lots", (("p_base * p_master_now", "p_base * p_master_base"),),
           "N",
           [OPEN2, ("reticket", 1, 0, 0)], common=True),
    Mutant("what was filled late is booked twice", "book_late", (("greatest(0, v_filled - v_beyond)", "0"),), "N",
           LATE_FILL, sizing=(5, 0)),
    Mutant("a doomed share is kept", "net_deltas", (("then -s.position_lots", "then 0"),), "N",
           [OPEN2, ("flip", 1, 0, 0)], common=True),
    # latches and guards
    Mutant("a refused open comes back", "undecided",
           (("and pl.copier_id = c.id", "and pl.copier_id = c.id and pl.state = 'live'"),
            ("coalesce(l.generation, 0) + 1", NEW_GENERATION)), "H",
           [OPEN, ("refuse", 0, 0, 0), ("level", 0, 0, 1)]),
    Mutant("the idempotency key is not asked", "take_event", (("if v_known is null then", "if false then"),), "H",
           [OPEN, ("repeat", 0, 0, 0)], common=True),
    Mutant("a flattening account opens", "opening_blocked_reason",
           (("when p_copy_state = 'flattening' then 'account_flattening'", ""),), "H",
           [OPEN, DONE, FLATTEN, OPEN, DONE]),
    Mutant("a copier that is off closes", "net_deltas", (("when s.frozen then 0", ""),), "N",
           [OPEN, DONE, ("mode", 0, 2, 0), CLOSE, DONE]),
    Mutant("a reversed copier takes the master's side", "decide_kinds",
           (("(opened.side = 'buy') = copier.reverse", "(opened.side = 'buy') <> copier.reverse"),), "H",
           [OPEN], common=True),
    # lists of symbols that are told in parts
    Mutant("a copy that waits for its symbol is refused for good", "decide_kinds",
           (("pair.kind in ('new', 'flip') and pair.reason is distinct from 'symbols_loading'",
             "pair.kind in ('new', 'flip')"),), "H", [OPEN], symbols=1, common=True),
    Mutant("a symbol is told and nothing is decided", "decide_waiting_symbols",
           (("s.follower_account_id = any (p_followers)", "false"),), "N", [OPEN], symbols=2, common=True),
    Mutant("what the master closed meanwhile is still waited for", "wait_is_over",
           (("else 'already_closed' end", "end"),), "H", [OPEN, CLOSE], symbols=1),
    # quiet windows
    Mutant("a quiet window stops no new copy", "decide_kinds",
           (("v_quiet boolean := private.any_quiet(p_now)", "v_quiet boolean := false"),), "H",
           [("quiet", 0, 0, 4), OPEN], common=True),
    # an order and a position of one number
    Mutant("a position of an order's number counts as decided", "undecided",
           (("and pl.master_kind = m.kind", ""),), "H", [("order", 0, 0, 0), ("twin", 0, 0, 0)], common=True),
    Mutant("an order that has filled under its number waits still", "has_filled",
           (("(m.session, m.seq) > (p_session, p_seq)", "false"),), "H",
           [("order", 0, 0, 0), ("late", 0, 0, 0), DONE, ("order_fills", 0, 0, 0)]),
    # a follower's broker renames the symbol
    Mutant("a copy keeps the old name of its symbol", "rename_copies",
           (("where l.id = any (v_links) and l.symbol = p_old", "where false"),), "H",
           [OPEN, DONE, ("rename_there", 0, 0, 4)], common=True),
    # a limit that no open may cross
    Mutant("an open past a limit is not judged", "held_to_limits", (("x.triggered_at is null", "false"),), "H",
           [("open", 0, 3, 0)], symbols=GUARDED, common=True),
    Mutant("what is on its way does not count", "held_with_stops",
           (("and q.in_flight and private.opens(q)", "and false"),), "H",
           [("open", 0, 1, 0), OPEN], symbols=GUARDED, common=True),
    Mutant("an open is refused that fits", "lots_in_room", (("p_room - p_one * p_lots > 0 or", "false or"),
           ("case when p_room - p_one * p_lots > 0 then p_lots end", "null")), "H",
           [OPEN], symbols=GUARDED),
]  # fmt: skip


def random_example(generator: random.Random, followers: str) -> tuple[list[int], list[Step]]:
    def number() -> int:
        return generator.randrange(8)

    choices = [number() for _ in range(how_many_choices(followers))]
    steps = [
        (generator.choice(verbs(followers)), number(), number(), number()) for _ in range(generator.randrange(10, 41))
    ]
    return choices, steps
