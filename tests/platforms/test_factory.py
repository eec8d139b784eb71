"""`PlatformFactory`: makes adapters by name; their modules are imported only when needed."""

import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize(
    "content", ["raise OSError('a library of another machine')", "not Python at all", "Adapter = None", ""]
)
def test_a_platform_whose_module_is_broken_cannot_be_used_either(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_platform.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_platform", raising=False)
    with pytest.raises(UnknownPlatform, match="cannot be used here"):
        PlatformFactory({"mt9": "broken_platform:Adapter"}).create("mt9")


def test_nothing_is_imported_before_it_is_needed() -> None:
    check = "import sys, agent.platforms.factory; sys.exit('agent.platforms.paper.adapter' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=60).returncode == 0
