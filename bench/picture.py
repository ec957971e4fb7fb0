"""The answers as one SVG picture: a panel per question, a bar per figure, its interval as a thin line on the bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from question import Answer
from timing import Samples

WIDTH, MARGIN, LABEL, VALUE = 920, 24, 190, 150
BAR, GAP, GROUP_GAP, HEADING = 13, 3, 9, 46
# One hue per column; what is ours is drawn full, the peers lighter. Both print well in grey.
HUES = ("#20639b", "#d1742b", "#4b8f4b", "#8a4f9e")
INK, FAINT = "#222222", "#777777"


def as_svg(facts: Mapping[str, str], answers: Sequence[Answer]) -> str:
    parts: list[str] = []
    y = MARGIN + 16
    parts.append(_text(MARGIN, y, "shoal: what starting a program costs", size=17, weight="bold"))
    parts.append(_text(MARGIN, y + 18, " · ".join((facts["cpu"], facts["cores"] + " cores", "Linux " + facts["kernel"])), fill=FAINT))
    y += 34
    for answer in answers:
        panel, height = _panel(answer, y)
        parts += panel
        y += height
    parts.append(_text(MARGIN, y + 12, "Medians; the thin line is the 95 % interval. Lighter bars are the peers.", fill=FAINT))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + MARGIN + 8}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _panel(answer: Answer, top: int) -> tuple[list[str], int]:
    columns = list(next(iter(answer.results.values())))
    unit = {"us": "µs, less is better", "1/s": "per second, more is better", "KiB": "KiB, less is better", "ms": "ms, less is better"}[
        answer.unit
    ]
    parts = [_text(MARGIN, top + 22, f"{answer.title} ({unit})", size=14, weight="bold")]
    x = MARGIN
    for index, column in enumerate(columns):
        parts.append(f'<rect x="{x}" y="{top + 30}" width="10" height="10" fill="{HUES[index]}"/>')
        parts.append(_text(x + 14, top + 39, column, fill=FAINT))
        x += 30 + 7 * len(column)
    measured = [result.estimate() for row in answer.results.values() for result in row.values() if isinstance(result, Samples)]
    scale = (WIDTH - 2 * MARGIN - LABEL - VALUE) / max((estimate.high for estimate in measured), default=1.0)
    y = top + HEADING + 4
    for name, row in answer.results.items():
        height = len(row) * (BAR + GAP)
        parts.append(_text(MARGIN + LABEL - 10, y + height / 2 + 3, name, anchor="end", weight="bold" if _ours(name) else "normal"))
        for index, result in enumerate(row.values()):
            left = MARGIN + LABEL
            if isinstance(result, Samples):
                estimate = result.estimate()
                length, low, high = (value * scale for value in (estimate.value, estimate.low, estimate.high))
                opacity = "1" if _ours(name) else "0.55"
                middle = y + BAR / 2
                parts.append(
                    f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{HUES[index]}" opacity="{opacity}"/>'
                    f'<line x1="{left + low:.1f}" x2="{left + high:.1f}" y1="{middle}" y2="{middle}" stroke="{INK}" stroke-width="1.5"/>'
                )
                parts.append(_text(left + max(length, high) + 6, y + BAR - 3, f"{estimate.value:,.0f}"))
            else:
                parts.append(_text(left, y + BAR - 3, "not measured", fill=FAINT))
            y += BAR + GAP
        y += GROUP_GAP
    return parts, y - top + 6


def _ours(name: str) -> bool:
    return name.startswith("shoal")


def _text(x: float, y: float, text: str, *, size: int = 12, fill: str = INK, anchor: str = "start", weight: str = "normal") -> str:
    style = f'font-size="{size}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
