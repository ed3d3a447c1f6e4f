"""How `penstock top` looks: one line a stage, in columns that fit 80 characters, and the other parts below."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text

from penstock.infra.top.stages import Part, Row

NOTHING = "–"
LATE_S, STALE_S = 1.0, 10.0  # behind or old by more: yellow, red


def screen(rows: Sequence[Row], parts: Sequence[Part], *, title: str, width: int) -> Text:
    """Everything, at most `width` columns wide."""
    gap = "  " if width >= 90 else " "
    lines = [Text(_cut(title, width), style="dim"), Text("")]
    heads = [f"{name:<{size}}" if name == "stage" else f"{name:>{size}}" for name, size, _ in COLUMNS]
    lines.append(Text(gap.join(heads), style="bold"))
    for row in rows:
        lines += _lines(row, gap, width)
    lines.append(Text(""))
    lines += _wrapped([_beside(part) for part in parts], width)
    return Text("\n", no_wrap=True, overflow="crop", end="").join(lines)


def _lines(row: Row, gap: str, width: int) -> list[Text]:
    cells = [(cell(row), size) for _, size, cell in COLUMNS]
    known = any(text.plain != NOTHING for text, _ in cells[1:])
    if row.trouble and not known:
        return [Text.assemble((f"{row.stage:<{COLUMNS[0][1]}}{gap}", ""), (_cut(row.trouble, width - 12), "red"))]
    line = Text()
    for number, (text, size) in enumerate(cells):
        text.align("left" if number == 0 else "right", size)
        line.append_text(text).append(gap if number + 1 < len(cells) else "")
    if not row.trouble:
        return [line]
    return [line, Text.assemble(("  └ ", "dim"), (_cut(row.trouble, width - 4), "red"))]


def _beside(part: Part) -> Text:
    if part.rss_bytes is None:
        named = "" if part.trouble.startswith(part.name) else f"{part.name} "
        return Text.assemble(named, (part.trouble, "red"))
    return Text.assemble((f"{part.name} ", "dim"), f"{size(part.rss_bytes)} {share(part.cpu)}")


def _wrapped(pieces: Sequence[Text], width: int) -> list[Text]:
    """Pieces in lines, whole."""
    lines: list[Text] = []
    for piece in pieces:
        piece.truncate(width)
        if lines and lines[-1].cell_len + 3 + piece.cell_len <= width:
            lines[-1].append(" · ", style="dim").append_text(piece)
        else:
            lines.append(piece)
    return lines


# --- numbers -------------------------------------------------------------------------------------------------------


def amount(value: float | None) -> str:
    """950, 1.2k, 3.4M."""
    if value is None:
        return NOTHING
    for bound, unit in ((1e6, "M"), (1e4, "k")):
        if value >= bound:
            return f"{value / (1e6 if unit == 'M' else 1e3):.1f}{unit}"
    return f"{value:.0f}"


def rate(value: float | None) -> str:
    return f"{value:.1f}" if value is not None and value < 100 else amount(value)


def duration(seconds: float | None) -> str:
    """85ms, 1.2s, 14s, 3m, 2h."""
    if seconds is None:
        return NOTHING
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    for bound, unit, name in ((120, 1, "s"), (7_200, 60, "m"), (172_800, 3_600, "h")):
        if seconds < bound:
            return f"{seconds / unit:.0f}{name}"
    return f"{seconds / 86_400:.0f}d"


def size(value: int | None) -> str:
    if value is None:
        return NOTHING
    return f"{value / 1e9:.1f}G" if value >= 999.5e6 else f"{value / 1e6:.0f}M"


def share(cores: float | None) -> str:
    return NOTHING if cores is None else f"{cores * 100:.0f}%"


def _late(seconds: float | None) -> Text:
    style = "" if seconds is None or seconds < LATE_S else "yellow" if seconds < STALE_S else "red"
    return Text(duration(seconds), style=style)


def _trouble(count: int | None, style: str) -> Text:
    return Text(amount(count), style=style if count else "")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


COLUMNS: tuple[tuple[str, int, Callable[[Row], Text]], ...] = (
    ("stage", 9, lambda row: Text(row.stage)),
    ("rate/s", 6, lambda row: Text(rate(row.rate))),
    ("lag", 6, lambda row: Text(amount(row.lag))),
    ("behind", 6, lambda row: _late(row.behind_s)),
    ("p50", 6, lambda row: _late(row.p50_s)),
    ("p99", 6, lambda row: _late(row.p99_s)),
    ("errors", 6, lambda row: _trouble(row.errors, "red")),
    ("degraded", 8, lambda row: _trouble(row.degraded, "yellow")),
    ("memory", 6, lambda row: Text(size(row.rss_bytes))),
    ("cpu", 5, lambda row: Text(share(row.cpu))),
)
