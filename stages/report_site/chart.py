"""Small SVG charts whose points are links: they read at any width, in light and dark, and need no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 660.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 24.0, 22.0, 54.0
CHARACTER = 6.6


@dataclass(frozen=True)
class Point:
    """A named point: role gives its colour, ``href`` where it leads, ``low`` and ``high`` its interval."""

    name: str
    across: float
    up: float
    role: str
    href: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A polyline through (across, up) points; ``dashed`` for references."""

    name: str
    points: tuple[tuple[float, float], ...]
    role: str
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """Data range mapped to pixels, logarithmic or not."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return the pixel of ``value``."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return some six round values inside the range."""
        if not self.logarithmic:
            step = _round_step((self.high - self.low) / 6)
            first = math.ceil(self.low / step - 1e-9)
            return [step * n for n in range(first, math.floor(self.high / step + 1e-9) + 1)]
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        wide = self.high / self.low > 1000
        found = [m * 10.0**e for e in exponents for m in ((1,) if wide else (1, 2, 5))]
        return [value for value in found if self.low <= value <= self.high]


def pareto(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats (cheaper and at least as good, or as cheap and better), cheapest first."""
    best, kept = -math.inf, []
    for point in sorted(points, key=lambda p: (p.across, -p.up)):
        if point.up > best:
            kept.append(point)
            best = point.up
    return kept


def scatter(
    points: Sequence[Point], *, across: str, up: str, title: str, levels: Sequence[tuple[str, float]] = ()
) -> Markup:
    """Draw score against cost (log), the Pareto front as a staircase, ``levels`` as dashed lines across.

    Args:
        points: at least one, costs above 0.
        across, up: what the axes are.
        title: the figure's name to a screen reader.
        levels: (name, score) of references without a cost.
    """
    costs = [p.across for p in points]
    heights = [v for p in points for v in (p.up, p.low, p.high) if v is not None] + [v for _, v in levels]
    x = Axis(min(costs) / 1.6, max(costs) * 2.2, LEFT, WIDTH - RIGHT, logarithmic=True)
    y = _padded(heights)
    front = pareto(points)
    parts = [_axes(x, y, across, up)]
    for name, value in levels:
        height = y.at(value)
        parts.append(
            Markup('<path class="level" d="M{} {}H{}"/><text class="small" x="{}" y="{}">{}</text>').format(
                _px(LEFT), _px(height), _px(WIDTH - RIGHT), _px(LEFT + 4), _px(height - 4), name
            )
        )
    if len(front) > 1:
        steps = f"M{_px(x.at(front[0].across))} {_px(y.at(front[0].up))}"
        steps += "".join(f"H{_px(x.at(p.across))}V{_px(y.at(p.up))}" for p in front[1:])
        parts.append(Markup('<path class="front" d="{}"/>').format(steps))
    taken = [(x.at(p.across) - 6, y.at(p.up) - 6, x.at(p.across) + 6, y.at(p.up) + 6) for p in points]
    taken += [(LEFT, y.at(v) - 16, LEFT + 8 + CHARACTER * len(name), y.at(v) - 2) for name, v in levels]
    parts += [_point(p, x, y, taken, p in front) for p in points]
    return _svg(parts, title, "group")


def lines(drawn: Sequence[Line], *, across: str, up: str, title: str) -> Markup:
    """Draw polylines on linear axes; each needs two points or more."""
    x = Axis(min(p[0] for one in drawn for p in one.points), max(p[0] for one in drawn for p in one.points),
             LEFT, WIDTH - RIGHT)  # fmt: skip
    y = _padded([p[1] for one in drawn for p in one.points])
    parts = [_axes(x, y, across, up)]
    for place, one in enumerate(drawn):
        path = "M" + "L".join(f"{_px(x.at(a))} {_px(y.at(b))}" for a, b in one.points)
        kind = "line dashed" if one.dashed else "line"
        parts.append(Markup('<path class="{} role-{}" d="{}"/>').format(kind, one.role, path))
        height = TOP + 14 + 18 * place
        parts.append(
            Markup('<path class="{} role-{}" d="M{} {}h22"/><text x="{}" y="{}">{}</text>').format(
                kind, one.role, _px(WIDTH - 190), _px(height), _px(WIDTH - 162), _px(height + 4), one.name
            )
        )
    return _svg(parts, title, "img")


def panel(points: Sequence[tuple[float, float]], classes: Sequence[int], colours: int, title: str) -> Markup:
    """Draw one map of clips; the script links the same clip (``data-i``) across the panels of a figure.

    Args:
        points: (clips, 2).
        classes: number of each clip's class.
        colours: how many colours there are; classes beyond them get hollow marks.
        title: the panel's name.
    """
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x = Axis(min(xs), max(max(xs), min(xs) + 1e-9), 14, 486)
    y = Axis(min(ys), max(max(ys), min(ys) + 1e-9), 486, 14)
    marks = "".join(
        f'<circle data-i="{i}" class="class-{c % colours}{" hollow" if c >= colours else ""}" '
        f'cx="{x.at(a):.0f}" cy="{y.at(b):.0f}" r="4.5"/>'
        for i, ((a, b), c) in enumerate(zip(points, classes, strict=True))
    )
    head = Markup('<svg role="img" viewBox="0 0 500 530" aria-label="Map of the clips: {}">').format(title)
    return head + Markup(marks) + Markup('<text x="12" y="518">{}</text></svg>').format(title)


def _point(
    point: Point, x: Axis, y: Axis, taken: list[tuple[float, float, float, float]], member: bool
) -> Markup:
    left, top = x.at(point.across), y.at(point.up)
    parts = []
    if point.low is not None and point.high is not None:
        parts.append(
            Markup('<path class="interval role-{}" d="M{} {}V{}"/>').format(
                point.role, _px(left), _px(y.at(point.low)), _px(y.at(point.high))
            )
        )
    kind = "member" if member else "beaten"
    parts.append(
        Markup('<circle class="point {} role-{}" cx="{}" cy="{}" r="6"/>').format(
            kind, point.role, _px(left), _px(top)
        )
    )
    place = _label_place(point.name, left, top, taken)
    if place is not None:
        parts.append(Markup('<text x="{}" y="{}">{}</text>').format(_px(place[0]), _px(place[1]), point.name))
    said = f"{point.name}: {point.up:.1f} at {point.across:,.4g}"
    body = Markup("").join([Markup("<title>{}</title>").format(said), *parts])
    if not point.href:
        return Markup("<g>{}</g>").format(body)
    return Markup('<a href="{}" aria-label="{}">{}</a>').format(point.href, said, body)


def _label_place(
    name: str, left: float, top: float, taken: list[tuple[float, float, float, float]]
) -> tuple[float, float] | None:
    """Return where the name hides nothing, or None: the point's title and the table still name it."""
    width = CHARACTER * len(name)
    for across, up in ((9, 4), (-9 - width, 4), (-width / 2, -11), (-width / 2, 20), (9, -9), (9, 17),
                       (-9 - width, -9), (-9 - width, 17)):  # fmt: skip
        box = (left + across, top + up - 10, left + across + width, top + up + 3)
        inside = box[0] > LEFT and box[2] < WIDTH and box[1] > 0 and box[3] < HEIGHT - BOTTOM
        if inside and not any(_meet(box, other) for other in taken):
            taken.append(box)
            return left + across, top + up
    return None


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _axes(x: Axis, y: Axis, across: str, up: str) -> Markup:
    foot, end = HEIGHT - BOTTOM, WIDTH - RIGHT
    rule = Markup('<path class="rule" d="{}"/>')
    tick = Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>')
    parts = []
    for value in x.ticks():
        at = _px(x.at(value))
        parts += [
            rule.format(f"M{at} {_px(TOP)}V{_px(foot)}"),
            tick.format(at, _px(foot + 17), "middle", _short(value)),
        ]
    for value in y.ticks():
        at, label = _px(y.at(value)), _px(y.at(value) + 4)
        parts += [
            rule.format(f"M{_px(LEFT)} {at}H{_px(end)}"),
            tick.format(_px(LEFT - 7), label, "end", _short(value)),
        ]
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            _px((LEFT + WIDTH - RIGHT) / 2), _px(HEIGHT - 12), across
        )
    )
    parts.append(Markup('<text class="axis" x="6" y="{}">{}</text>').format(_px(TOP - 9), up))
    return Markup("").join(parts)


def _svg(parts: Sequence[Markup], title: str, role: str) -> Markup:
    head = Markup('<svg class="plot" role="{}" viewBox="0 0 {:.0f} {:.0f}" aria-label="{}">')
    return head.format(role, WIDTH, HEIGHT, escape(title)) + Markup("").join(parts) + Markup("</svg>")


def _padded(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    room = max((high - low) * 0.08, abs(high) * 0.01, 1e-9)
    return Axis(low - room, high + room, HEIGHT - BOTTOM, TOP)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:.6g}"


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
