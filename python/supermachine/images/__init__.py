"""From an image reference to a root file system: registries, layouts, archives and the cache.

:func:`resolve` is the whole of it; everything else here is what it is made of. Names load on first use, so importing
this package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..cache.store import Cache, CachedImage
    from ..oci.model import ImageConfig
    from ..oci.platforms import Platform
    from ..oci.references import FileReference, RegistryReference, parse_reference
    from .progress import Progress, ProgressEvent
    from .resolution import Converter, ResolvedImage, resolve

_HOMES = {
    "Cache": "cache.store",
    "CachedImage": "cache.store",
    "Converter": "images.resolution",
    "FileReference": "oci.references",
    "ImageConfig": "oci.model",
    "Platform": "oci.platforms",
    "Progress": "images.progress",
    "ProgressEvent": "images.progress",
    "RegistryReference": "oci.references",
    "ResolvedImage": "images.resolution",
    "parse_reference": "oci.references",
    "resolve": "images.resolution",
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

    value = getattr(import_module(f"supermachine.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
