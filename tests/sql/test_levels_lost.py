"""Levels that stand no longer, or never came to stand: whatever happens in between, they are asked for anew."""

from decimal import Decimal

from netting_world import NettingWorld


def test_a_net_position_that_comes_back_gets_its_levels_again(world: NettingWorld) -> None:
    """Another copy took the position to nothing, and its stop loss with it; the end of that copy opens it anew."""
    world.copy("M", "N")
    world.copy("M2", "N")
    world.opened("M", "0.30", sl="1.05000")
    world.run()
    other = world.opened("M2", "0.30", "sell")
    world.run()
    assert world.net == 0
    world.send("M2", world.event("closed", other | {"lots": "0"}))
    world.run()
    assert (world.net, world.levels) == (Decimal("0.30"), (Decimal("1.05"), None)), world.acts("N")
