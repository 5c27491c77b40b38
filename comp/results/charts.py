"""Charts as inline SVG: lines, dots, boxes, intervals and heat maps, for pages that load nothing.

Sizes are pixels of the viewBox; a browser scales a chart to its column. Colours are the custom properties of `page`'s
style sheet, so that a chart is light, dark or printed as the page is. Every mark has a <title>, which browsers show
where the pointer rests; `page`'s script shows it at once, also on focus and touch. Labels are escaped here.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from comp.runtime import escape

WIDTH = 420.0  # of a chart with axes
_LETTER = 6.6  # width of a letter of tick labels, of 12 px
_MAX_LABEL = 22  # letters of a label; the mark's title has all of them
_MAX_STRIPS = 120  # places along x that show their values
_MAX_TIP_LINES = 16
_MAX_DOTTED = 40  # points; more dots would hide the line
_COLOURS = 7  # `--s0` to `--s6`, after Okabe and Ito (2008): distinct with any colour vision
GREY = -1  # a style, for lines behind others
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "14 4", "5 2 1 2 1 2")
Dot = tuple[float, float, str, str]  # x, y, tip, and a CSS colour, empty for a hollow one


@dataclass(frozen=True)
class Axis:
    """One direction of a chart.

    Attributes:
        title: below or above the axis.
        low: its end at the left or the bottom.
        high: its other end.
        ticks: value -> label.
        log: whether equal steps are equal ratios.
    """

    title: str
    low: float
    high: float
    ticks: Mapping[float, str]
    log: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies: 0 at `low`, 1 at `high`."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (value - low) / (high - low)


def number_axis(title: str, values: Iterable[float], *, integers: bool = False, log: bool = False) -> Axis:
    """Return an axis of numbers that holds all values, with round ticks.

    Args:
        title: of the axis.
        values: at least one; infinities and NaN are left out.
        integers: only whole ticks, such as epochs.
        log: logarithmic, if all values are positive.
    """
    finite = [float(value) for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    log = log and low > 0
    if low == high:
        margin = 1.0 if integers else abs(low) / 10 or 0.5
        low, high = low - margin, high + margin
    if log:
        low, high = low / 1.1, high * 1.1
        return Axis(title, low, high, {tick: f"{tick:g}" for tick in _log_ticks(low, high)}, log=True)
    ticks = nice_ticks(low, high, integers=integers)
    margin = (high - low) * 0.04
    return Axis(title, low - margin, high + margin, ticks)


def category_axis(title: str, names: Sequence[str]) -> Axis:
    """Return an axis of names, at 0, 1, 2 and so on."""
    return Axis(title, -0.5, len(names) - 0.5, {float(row): name for row, name in enumerate(names)})


def nice_ticks(low: float, high: float, most: int = 6, *, integers: bool = False) -> dict[float, str]:
    """Return round numbers from `low` to `high` with their labels: multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= most)
    if integers:
        step = max(step, 1.0)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    largest = max(abs(low), abs(high))
    form = f",.{places}f" if 1e4 <= largest < 1e6 else f".{places}f" if 1e-3 <= largest < 1e4 else ".3g"  # 2010: a year
    return {tick: format(tick, form) for tick in ticks}


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(ticks) <= 6:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 6)]


def colour(style: int) -> str:
    """Return the CSS colour of a style, such as the number of a line."""
    return "var(--soft)" if style == GREY else f"var(--s{style % _COLOURS})"


def _stroke(style: int) -> str:
    dash = _DASHES[style // _COLOURS % len(_DASHES)]
    return f'stroke="{colour(style)}"' + (f' stroke-dasharray="{dash}"' if dash else "")


@dataclass
class Plot:
    """A chart with two axes; its methods add marks, the last on top.

    Attributes:
        x: the horizontal axis.
        y: the vertical axis.
        title: of the chart; empty for none.
        height: of the whole.
    """

    x: Axis
    y: Axis
    title: str = ""
    height: float = 250.0
    _parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        labels = [_short(label) for label in self.y.ticks.values()]
        self._left = 14 + _LETTER * max(map(len, labels), default=1)
        self._top = (24 if self.title else 8) + (16 if self.y.title else 0)
        self._bottom = self.height - (40 if self.x.title else 24)
        self._right = WIDTH - 12

    def _across(self, value: float) -> float:
        return self._left + self.x.share(value) * (self._right - self._left)

    def _down(self, value: float) -> float:
        return self._bottom - self.y.share(value) * (self._bottom - self._top)

    def line(self, points: Iterable[tuple[float, float]], style: int = 0, *, dots: bool = True) -> None:
        """Draw a line through points; every seventh has the same colour, with other dashes."""
        places = [(self._across(x), self._down(y)) for x, y in points if math.isfinite(y)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        self._parts.append(f'<g class="line" data-line="{style}"><path d="M{path}" {_stroke(style)}/>')
        if dots and len(places) <= _MAX_DOTTED:
            self._parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour(style)}"/>' for x, y in places]
        self._parts.append("</g>")

    def dots(self, points: Iterable[Dot]) -> None:
        """Draw dots."""
        for x, y, tip, fill in points:
            shape = f'fill="{fill}"' if fill else 'class="hollow"'
            self._mark(f'<circle cx="{self._across(x):.1f}" cy="{self._down(y):.1f}" r="4.5" {shape}>', "circle", tip)

    def box(self, x: tuple[float, float], y: tuple[float, float], tip: str) -> None:
        """Draw a bar from one corner to the other."""
        left, right = self._across(x[0]), self._across(x[1])
        top, bottom = self._down(y[1]), self._down(y[0])
        size = f'width="{max(right - left, 0):.1f}" height="{max(bottom - top, 0):.1f}"'
        self._mark(f'<rect x="{left:.1f}" y="{top:.1f}" {size} class="bar">', "rect", tip)

    def whisker(self, y: float, value: float, low: float, high: float, tip: str, style: int = 0) -> None:
        """Draw a dot at (value, y) in its interval."""
        middle, start, end, at = self._down(y), *(self._across(each) for each in (low, high, value))
        self._parts.append(
            f'<g fill="{colour(style)}" stroke="{colour(style)}"><path class="whisker" d="M{start:.1f} {middle:.1f}'
            f'H{end:.1f}"/><circle cx="{at:.1f}" cy="{middle:.1f}" r="4.5"/></g>'
        )
        size = f'width="{self._right - self._left:.1f}" height="20"'
        self._mark(f'<rect class="strip" x="{self._left:.1f}" y="{middle - 10:.1f}" {size}>', "rect", tip)

    def guide(self, x: float) -> None:
        """Draw a dashed vertical line."""
        self._parts.append(f'<path class="guide" d="M{self._across(x):.1f} {self._top:.1f}V{self._bottom:.1f}"/>')

    def diagonal(self) -> None:
        """Draw the line on which x and y are equal."""
        low, high = max(self.x.low, self.y.low), min(self.x.high, self.y.high)
        ends = [f"{self._across(value):.1f} {self._down(value):.1f}" for value in (low, high)]
        self._parts.append(f'<path class="guide" d="M{"L".join(ends)}"/>')

    def strips(self, tips: Mapping[float, str]) -> None:
        """Let each place along x show its values, in the whole height; of very many places some."""
        every = math.ceil(len(tips) / _MAX_STRIPS)
        places = sorted(tips)[::every]
        middles = [(self._across(a) + self._across(b)) / 2 for a, b in itertools.pairwise(places)]
        edges = [self._left, *middles, self._right]
        height = f'y="{self._top:.1f}" height="{self._bottom - self._top:.1f}"'
        for place, left, right in zip(places, edges, edges[1:], strict=False):
            rect = f'<rect class="strip" x="{left:.1f}" width="{right - left:.1f}" {height}>'
            self._mark(rect, "rect", tips[place])

    def _mark(self, opened: str, tag: str, tip: str) -> None:
        self._parts.append(f"{opened}<title>{_text(tip)}</title></{tag}>")

    def svg(self) -> str:
        """Return the chart."""
        left, right, top, bottom = self._left, self._right, self._top, self._bottom
        parts = [f'<text class="title" x="0" y="14">{_text(self.title)}</text>'] if self.title else []
        for value, label in self.y.ticks.items():
            at = self._down(value)
            parts.append(f'<path class="rule" d="M{left:.1f} {at:.1f}H{right:.1f}"/>')
            parts.append(f'<text x="{left - 6:.1f}" y="{at + 4:.1f}" text-anchor="end">{_text(_short(label))}</text>')
        room = (right - left) / max(len(self.x.ticks), 1)
        for value, label in self.x.ticks.items():
            shown = _short(label, max(2, int(room / _LETTER)))
            parts.append(f'<path class="rule" d="M{self._across(value):.1f} {top:.1f}V{bottom:.1f}"/>')
            parts.append(
                f'<text x="{self._across(value):.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{_text(shown)}</text>'
            )
        if self.x.title:
            middle = (left + right) / 2
            parts.append(
                f'<text class="axis" x="{middle:.1f}" y="{bottom + 34:.1f}" text-anchor="middle">'
                f"{_text(self.x.title)}</text>"
            )
        if self.y.title:
            parts.append(f'<text class="axis" x="{left:.1f}" y="{top - 6:.1f}">{_text(self.y.title)}</text>')
        named = self.title or f"{self.y.title} by {self.x.title}"
        return _svg(WIDTH, self.height, named, [*parts, *self._parts])


def lines(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_title: str,
    *,
    log: bool = False,
    styles: Mapping[str, int] | None = None,
    names: Sequence[str] = (),
) -> Plot:
    """Return a chart of named lines over whole numbers; pointing at a place shows all values there.

    Args:
        title: of the chart.
        series: label -> points.
        x_title: such as `epoch`.
        log: logarithmic, if all values are positive.
        styles: label -> number of its style; None: in their order.
        names: of the places 0, 1, 2 and so on along x; empty: their numbers.
    """
    points = [point for row in series.values() for point in row if math.isfinite(point[1])]
    x = number_axis(x_title, (at for at, _ in points), integers=True)
    plot = Plot(x, number_axis("", (value for _, value in points), log=log), title)
    by_place: dict[float, list[str]] = {}
    for order, (label, row) in enumerate(series.items()):
        plot.line(row, styles[label] if styles else order)
        for at, value in row:
            by_place.setdefault(at, []).append(f"{label}: {value:.4g}")
    named = {at: names[int(at)] if names else f"{x_title} {at:g}" for at in by_place}
    plot.strips({at: "\n".join([named[at], *_first(values)]) for at, values in by_place.items()})
    return plot


def _first(values: Sequence[str]) -> list[str]:
    more = len(values) - _MAX_TIP_LINES
    return [*values[:_MAX_TIP_LINES], *([f"and {more} more"] if more > 0 else [])]


def legend(labels: Iterable[str]) -> str:
    """Return the legend of lines, in their order."""
    rows = "".join(f"<span>{swatch(style)} {_text(label)}</span>" for style, label in enumerate(labels))
    return f'<p class="legend">{rows}</p>'


def swatch(style: int) -> str:
    """Return a piece of the n-th line; pointing at it dims all other lines of the page."""
    return (
        f'<svg class="swatch" data-style="{style}" viewBox="0 0 28 8" width="28" height="8" aria-hidden="true">'
        f'<path d="M0 4H28" stroke-width="3" {_stroke(style)}/></svg>'
    )


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: NDArray[np.float64],
    tip: Callable[[int, int], str],
    *,
    title: str,
) -> str:
    """Return a table of coloured numbers [rows, columns], dark for low ones; NaN cells are empty.

    The colours are cividis, for any colour vision (Nuñez et al. 2018, doi:10.1371/journal.pone.0199239).
    """
    from matplotlib import colormaps, colors  # slow to import

    cividis = colormaps["cividis"]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    span = high - low or 1.0
    left = 14 + _LETTER * max(len(_short(row)) for row in rows)
    wide, tall, top = 46.0, 21.0, 36.0
    parts = [f'<text class="title" x="0" y="13">{_text(title)}</text>']
    for column, name in enumerate(columns):
        middle = left + (column + 0.5) * wide
        parts.append(f'<text x="{middle:.1f}" y="{top - 6}" text-anchor="middle">{_text(_short(name, 7))}</text>')
    for row, name in enumerate(rows):
        y = top + row * tall
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 15:.1f}" text-anchor="end">{_text(_short(name))}</text>')
        for column in range(len(columns)):
            value = float(values[row, column])
            if math.isnan(value):
                continue
            x, share = left + column * wide, (value - low) / span
            ink = "#fff" if share < 0.5 else "#111"
            parts.append(
                f'<g class="cell" data-value="{value!r}"><rect x="{x:.1f}" y="{y:.1f}" width="{wide - 1}" '
                f'height="{tall - 1}" fill="{colors.to_hex(cividis(share))}"/>'
                f'<text x="{x + wide / 2:.1f}" y="{y + 14.5:.1f}" text-anchor="middle" '
                f'fill="{ink}">{value:.3f}</text><title>{_text(tip(row, column))}</title></g>'
            )
    return _svg(max(left + len(columns) * wide, 7.5 * len(title)), top + len(rows) * tall, title, parts)


def confusion(table: NDArray[np.int64], totals: NDArray[np.int64], classes: Sequence[str], counted: str) -> str:
    """Return a confusion table [true classes, predicted classes]: blue the correct ones, orange the mistakes.

    A cell is as strong as its share of the true class's `totals`; shares below 0.2 % are left out.
    """
    count, names = len(classes), [_short(name, 18) for name in classes]
    side, font = (36.0, 12.0) if count <= 12 else (24.0, 12.0) if count <= 30 else (11.0, 10.0)
    longest = max(map(len, names))
    margin = 10 + 0.56 * font * longest
    is_flat = longest * font < side  # headings that fit their columns are not turned
    top = 36.0 if is_flat else margin + 16
    shares = table / np.maximum(totals[:, None], 1)
    parts = [
        f'<text class="axis" x="{margin:.1f}" y="12">columns: predicted, rows: true</text>',
        f'<g style="font-size:{font:.1f}px">',
    ]
    for row, name in enumerate(names):
        middle = (row + 0.5) * side
        beside = f'x="{margin - 5:.1f}" y="{top + middle + font / 3:.1f}" text-anchor="end"'
        turned = f'transform="translate({margin + middle + font / 3:.1f} {top - 5:.1f}) rotate(-90)"'
        flat = f'x="{margin + middle:.1f}" y="{top - 6:.1f}" text-anchor="middle"'
        parts += [f"<text {place}>{_text(name)}</text>" for place in (beside, flat if is_flat else turned)]
    parts.append(
        f'</g><path class="frame" d="M{margin:.1f} {top:.1f}h{count * side}v{count * side}h-{count * side}z"/>'
    )
    for row, column in np.argwhere(shares >= 0.002).tolist():
        share, images = float(shares[row, column]), int(table[row, column])
        x, y = margin + column * side, top + row * side
        # In small cells, only numbers that matter.
        is_shown, is_right = share >= 0.015 or side > 20, row == column
        number = _number_in(images, side, share, x, y, is_right=is_right) if is_shown else ""
        kind = "right" if is_right else "wrong"
        parts.append(
            f'<g><path class="{kind}" d="M{x:.1f} {y:.1f}h{side - 1}v{side - 1}h-{side - 1}z" '
            f'fill-opacity="{0.08 + 0.92 * math.sqrt(share):.2f}"/>{number}<title>'
            f"{_text(f'{classes[row]}, predicted {classes[column]}: {images:,} {counted} ({share:.1%})')}</title></g>"
        )
    width = margin + max(count * side, 190.0) + 2  # of few classes, the line above is wider
    return _svg(width, top + count * side + 2, "confusion table", parts)


def _number_in(count: int, side: float, share: float, x: float, y: float, *, is_right: bool) -> str:
    """Return a cell's count, such as 9.5k."""
    text = str(count) if count < 1000 else f"{count / 1000:.1f}k" if count < 10_000 else f"{count / 1000:.0f}k"
    font = min(12.0, (side - 2) / (0.6 * len(text)))
    strong = ' class="strong"' if is_right and share > 0.8 else ""  # white on a lighter cell would be unreadable
    return (
        f'<text x="{x + side / 2 - 0.5:.1f}" y="{y + side / 2 + font / 3:.1f}" text-anchor="middle"{strong} '
        f'style="font-size:{font:.1f}px">{text}</text>'
    )


def _svg(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    wide = f"min-width:{min(width * 0.8, 320):.0f}px" if width <= WIDTH else f"min-width:{width * 0.75:.0f}px"
    return (
        f'<div class="scroll"><svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" role="img" tabindex="0" '
        f'aria-label="{_text(label)}" style="{wide};max-width:{width * 1.35:.0f}px">{"".join(parts)}</svg></div>'
    )


def _short(label: str, most: int = _MAX_LABEL) -> str:
    label = escape.one_line(label)
    return label if len(label) <= most else label[: most - 1] + "…"


def _text(value: str) -> str:
    return escape.for_html(value)
