"""Platforms, and the choice among those that an image index offers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..errors import ConfigurationError, PlatformNotFound

# Names that uname and people use, and the ones of Go that images use (containerd's platforms package normalises these).
_ARCHITECTURES = {
    "aarch64": ("arm64", ""),
    "arm64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "amd64": ("amd64", ""),
    "i386": ("386", ""),
}
# The variant that a missing one means.
_BASELINE = {"arm64": "v8", "amd64": "v1", "arm": "v7"}


class Platform(NamedTuple):
    """``os/architecture[/variant]``, with the variant that is the architecture's baseline left out."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str | Platform) -> Platform:
        if isinstance(text, Platform):
            return text
        parts = text.strip().split("/")
        if len(parts) == 1:
            parts = ["linux", *parts]
        if len(parts) not in (2, 3) or not all(parts):
            raise ConfigurationError(
                f"{text[:100]!r} is not a platform", hint="write linux/arm64 or linux/amd64, with an optional variant"
            )
        return cls.normalised(*parts)

    @classmethod
    def normalised(cls, os: str, architecture: str, variant: str = "") -> Platform:
        architecture, implied = _ARCHITECTURES.get(architecture.lower(), (architecture.lower(), ""))
        variant = (variant or implied).lower()
        if variant and variant[0].isdigit():
            variant = "v" + variant
        if variant == _BASELINE.get(architecture):
            variant = ""
        return cls(os.lower(), architecture, variant)

    def runs(self, image: Platform) -> bool:
        """Whether an image for the platform `image` runs on this one: the same, or the baseline of the same."""
        return (
            self.os == image.os
            and self.architecture == image.architecture
            and image.variant
            in (
                self.variant,
                "",
            )
        )

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def best(wanted: Platform, offered: Iterable[Platform]) -> int | None:
    """Position of the platform to take: the exact one before the baseline, the first of equals; or `None`."""
    choice: int | None = None
    for position, platform in enumerate(offered):
        if platform == wanted:
            return position
        if choice is None and wanted.runs(platform):
            choice = position
    return choice


def not_found(reference: str, wanted: Platform, offered: Iterable[Platform]) -> PlatformNotFound:
    # Attestations are index entries of the platform unknown/unknown; nobody wants to run those.
    names = sorted({str(p) for p in offered if p.os != "unknown"})
    there_is = "it has " + ", ".join(names[:40]) if names else "it names no platform at all"
    return PlatformNotFound(
        f"image {reference} has nothing for {wanted}: {there_is}",
        hint="build or pull the image for that platform (docker buildx build --platform …)",
    )
