"""`private.queue_executions` and `private.store_outcomes`: the only inserts of executions and of outcomes."""

from netting_harness import NettingWorld

NEWEST = """
  select q.action, q.offered_at, extract(epoch from q.send_before - q.queued_at)::integer as seconds
  from public.trade_execution_queue q order by q.id desc limit 1"""


def followed(world: NettingWorld) -> str:
    """A master and a hedging follower, each on a VPS of its own; returns the copier."""
    world.add_account("A", vps="a")
    world.add_account("B", vps="b")
    return world.copy("A", "B")


def test_a_close_that_no_vps_can_send_now_is_not_overdue_at_once(world: NettingWorld) -> None:
    followed(world)
    position = world.position()
    world.send("A", world.event("opened", position))
    world.settle()
    world.db.execute(
        "update public.vps_instances set lease_expires_at = now() - interval '1 second' where id = %s",
        (world.vps["b"],),
    )
    world.send("A", world.event("closed", position | {"lots": "0"}))
    assert world.rows(NEWEST) == [{"action": "close", "offered_at": None, "seconds": 5}]


def test_an_execution_that_is_a_step_of_its_own_has_the_number_of_its_step(world: NettingWorld) -> None:
    """The tag of its order is then the step's number, by which another agent finds what the step left."""
    followed(world)
    order = world.position(kind="order", order_type="limit", price="1.09000")
    world.send("A", world.event("ordered", order))
    world.settle()
    world.send("A", world.event("opened", world.position(price="1.09000", replaces=order["ticket"])))
    world.db.execute("update public.position_links set order_due_at = '-infinity' where order_due_at is not null")
    world.come_due()
    world.settle()
    (converted,) = world.rows("select id, step_id from public.trade_execution_queue where action = 'open'")
    assert converted["id"] == converted["step_id"]


def test_what_is_explained_last_leaves_an_earlier_reason(world: NettingWorld) -> None:
    copier = followed(world)
    event = world.one("select nextval('public.trade_events_id_seq')")
    for reason, only_new in (("max_open_lots", False), ("no_change", True), ("below_min", False)):
        world.db.execute(
            "select private.store_outcomes(array[row(%s, %s, %s, null, null, %s, null)::private.outcome], %s)",
            (event, copier, world.user, reason, only_new),
        )
        kept = "max_open_lots" if only_new else reason
        assert world.one("select reason from public.copy_outcomes where event_id = %s", event) == kept
