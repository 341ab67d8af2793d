"""Pages of results, of which parts stay that were not run here."""

from __future__ import annotations


def sections_of(page: str) -> dict[str, str]:
    """What stands under each heading of the second level, by heading."""
    sections = (section.partition("\n") for section in page.split("\n## ")[1:])
    return {heading: body.strip() for heading, _, body in sections}
