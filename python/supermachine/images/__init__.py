"""From an image reference to a root file system: registries, layouts, archives and the cache.

:func:`resolve` is the whole of it; everything else here is what it is made of. Names load on first use, so importing
this package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import Cache, CachedImage
    from .model import ImageConfig
    from .platforms import Platform
    from .progress import Progress, ProgressEvent
    from .references import FileReference, RegistryReference, parse_reference
    from .store import Converter, ResolvedImage, resolve

_HOMES = {
    "Cache": "cache",
    "CachedImage": "cache",
    "Converter": "store",
    "FileReference": "references",
    "ImageConfig": "model",
    "Platform": "platforms",
    "Progress": "progress",
    "ProgressEvent": "progress",
    "RegistryReference": "references",
    "ResolvedImage": "store",
    "parse_reference": "references",
    "resolve": "store",
}

__all__ = [
    "Cache",
    "CachedImage",
    "Converter",
    "FileReference",
    "ImageConfig",
    "Platform",
    "Progress",
    "ProgressEvent",
    "RegistryReference",
    "ResolvedImage",
    "parse_reference",
    "resolve",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
