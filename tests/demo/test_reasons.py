import re
from pathlib import Path

from agent.demo.reasons import NOTHING_TO_DO


def test_nothing_to_do_is_what_the_documentation_says() -> None:
    text = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
    section = text.split("### Nothing to do", 1)[1].split("\n#", 1)[0]
    documented = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|(.*?)\|", section, re.MULTILINE))))
    assert documented == NOTHING_TO_DO
