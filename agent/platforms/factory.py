"""`PlatformFactory`: makes the adapter of a platform by name; its module is imported only then."""

from collections.abc import Mapping
from importlib import import_module
from typing import cast

from agent.platforms.adapter import Adapter

#: each platform's adapter class; imported only when needed, because no VPS has the libraries of every platform
PLATFORMS: Mapping[str, str] = {
    "paper": "agent.platforms.paper.adapter:PaperAdapter",
}


class UnknownPlatform(ValueError):
    """There is no adapter with that name, or a library that it needs cannot be used on this machine."""


class PlatformFactory:
    """Builds adapters. `platforms` maps a name to `module:class`; the class is called without arguments."""

    def __init__(self, platforms: Mapping[str, str] = PLATFORMS) -> None:
        self._platforms = dict(platforms)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._platforms))

    def create(self, platform: str) -> Adapter:
        """A new, unconnected adapter. Raises `UnknownPlatform`."""
        path = self._platforms.get(platform)
        if path is None:
            raise UnknownPlatform(f"there is no platform {platform!r}; available: {', '.join(self.names)}")
        module, _, name = path.partition(":")
        try:
            built = getattr(import_module(module), name)()
        except Exception as error:
            # An installed library may be broken: whatever it raises, this machine cannot use the platform.
            why = f"{type(error).__name__}: {error}"
            raise UnknownPlatform(f"platform {platform!r} cannot be used here: {why}"[:400]) from error
        return cast(Adapter, built)
