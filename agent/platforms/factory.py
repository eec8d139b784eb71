"""`PlatformFactory`: a platform's name → a fresh adapter, its module imported only when it is asked for."""

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from agent.platforms.protocol import Adapter

#: where each platform's adapter class lives; nothing is imported before it is needed (a VPS has not every platform)
PLATFORMS: Mapping[str, str] = {
    "paper": "agent.platforms.paper.adapter:PaperAdapter",
}


class UnknownPlatform(ValueError):
    """No adapter of that name exists, or what it needs is not installed on this machine."""


class PlatformFactory:
    """Builds adapters. `platforms` maps a name to `module:class`; the class is called without arguments."""

    def __init__(self, platforms: Mapping[str, str] = PLATFORMS) -> None:
        self._platforms = dict(platforms)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._platforms))

    def create(self, platform: str) -> Adapter:
        """A new, unconnected adapter. UnknownPlatform says what is wrong and which names exist."""
        path = self._platforms.get(platform)
        if path is None:
            raise UnknownPlatform(f"there is no platform {platform!r}; known are: {', '.join(self.names)}")
        module, _, name = path.partition(":")
        try:
            built = getattr(import_module(module), name)
        except ImportError as error:
            raise UnknownPlatform(f"platform {platform!r} cannot be used here: {error}") from error
        return cast(Adapter, built())
