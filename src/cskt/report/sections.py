"""A section of the report: a heading, how to read it, and a table, charts, sentences or answers below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from cskt.report.pictures import Answer

LEAST_PIXELS_PER_INCH = 64
"""A narrow screen scrolls a drawing rather than showing it smaller, so that its words stay readable."""


@dataclass(frozen=True)
class Chart:
    """A drawing and its texts."""

    name: str
    """Stem of the file that it is also written to: `cmc`."""
    figure: Figure
    alt: str
    """Alternative text for readers who do not see the drawing."""
    title: str = ""
    """Shown above it where a section has several."""

    @property
    def least_width_pixels(self) -> int:
        """The width below which a narrow screen scrolls."""
        return round(LEAST_PIXELS_PER_INCH * self.figure.get_figwidth())


@dataclass(frozen=True)
class Section:
    """One part of a report; empty fields are left out."""

    heading: str
    note: str = ""
    """The content of the section, how to read it, and how it was chosen."""
    charts: Sequence[Chart] = ()
    sentences: Sequence[tuple[str, str]] = ()
    """Captions, each with a remark on it."""
    answers: Sequence[Answer] = ()
    half: bool = False
    """Beside the next part where the screen is wide."""
    table: Sequence[Sequence[str]] = ()
    """Rows of text: headings first, the name of a row in front."""
