"""`PlatformFactory`: names to adapters, imported only when asked for."""

import subprocess
import sys

import pytest

from agent.platforms.factory import PlatformFactory, UnknownPlatform
from agent.platforms.paper.adapter import PaperAdapter


def test_each_call_builds_a_fresh_adapter() -> None:
    factory = PlatformFactory()
    one, other = factory.create("paper"), factory.create("paper")
    assert isinstance(one, PaperAdapter)
    assert one is not other


def test_an_unknown_platform_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownPlatform, match=r"'metastock'.*paper"):
        PlatformFactory().create("metastock")


def test_a_platform_that_is_not_installed_says_what_is_missing() -> None:
    factory = PlatformFactory({"mt9": "no_such_package.adapter:Adapter"})
    with pytest.raises(UnknownPlatform, match="no_such_package"):
        factory.create("mt9")


def test_nothing_is_imported_before_it_is_needed() -> None:
    check = "import sys, agent.platforms.factory; sys.exit('agent.platforms.paper.adapter' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0
