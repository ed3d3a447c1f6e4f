"""How `penstock top` looks: a line a stage, in columns that fit 80 characters, the ranker's queues, the other parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text

from penstock.infra.top.shaping import Queue, Shaping
from penstock.infra.top.stages import Part, Row

NOTHING = "–"
LATE_S, STALE_S = 1.0, 10.0  # behind or old by more: yellow, red
LITTLE_SLACK_S = 0.1
DOUBTFUL = 0.5  # confidence in the cost model
REASONS = 3  # of depth, the most frequent ones


def screen(
    rows: Sequence[Row], parts: Sequence[Part], shaping: Shaping | None = None, *, title: str, width: int
) -> Text:
    """Everything, at most `width` columns wide."""
    gap = "  " if width >= 90 else " "
    lines = [Text(_cut(title, width), style="dim"), Text(""), _heads(COLUMNS, gap)]
    for row in rows:
        lines += _lines(row, gap, width)
    if shaping is not None:
        lines += [Text(""), *_shaping(shaping, gap, width)]
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


def _shaping(shaping: Shaping, gap: str, width: int) -> list[Text]:
    """A line a queue, with as many of its reasons as there is room for; then what holds for all of them."""
    lines = [_heads(QUEUES, gap).append(f"{gap}why, /s")]
    for queue in shaping.queues:
        line = Text()
        for number, (_, size, cell) in enumerate(QUEUES):
            text = cell(queue)
            text.align("left" if number == 0 else "right", size)
            line.append_text(text).append(gap)
        for reason, a_second in (queue.why or {}).items():
            told = f"{reason} {rate(a_second)} "
            if line.cell_len + len(told) - 1 > width:
                break
            line.append(told, style="dim")
        line.rstrip()
        lines.append(line)
    slack_s, sure = shaping.slack_s, shaping.confidence
    cost = f"{shaping.overhead_s * 1e3:.1f}ms + {shaping.token_s * 1e6:.1f}µs a token"
    reasons = [f"{reason} {share(part)}" for reason, part in shaping.depth_reasons.items()][:REASONS]
    pieces = [
        Text.assemble(("depth ", "dim"), f"{shaping.depth:.0f} {shaping.depth_reason}"),
        Text.assemble(("given for ", "dim"), " ".join(reasons) or NOTHING),
        Text.assemble(
            ("slack ", "dim"), _low(duration_or_less(slack_s), slack_s is not None and slack_s < LITTLE_SLACK_S)
        ),
        *([Text.assemble(("busy ", "dim"), share(shaping.busy))] if shaping.busy is not None else []),
        Text.assemble(("a search would wait ", "dim"), _late(shaping.delay_s)),
        Text.assemble(("a batch takes ", "dim"), cost, ", ", _low(f"{share(sure)} sure", sure < DOUBTFUL)),
    ]
    return lines + _wrapped(pieces, width)


def _heads(columns: Sequence[tuple[str, int, object]], gap: str) -> Text:
    (first, size, _), *others = columns
    return Text(gap.join([f"{first:<{size}}", *(f"{name:>{width}}" for name, width, _ in others)]), style="bold")


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


def duration_or_less(seconds: float | None) -> str:
    """The same of what may be negative; ∞ for None."""
    if seconds is None:
        return "∞"
    return f"−{duration(-seconds)}" if seconds < 0 else duration(seconds)


def size(value: int | None) -> str:
    if value is None:
        return NOTHING
    return f"{value / 1e9:.1f}G" if value >= 999.5e6 else f"{value / 1e6:.0f}M"


def share(cores: float | None) -> str:
    return NOTHING if cores is None else f"{cores * 100:.0f}%"


def _late(seconds: float | None) -> Text:
    style = "" if seconds is None or seconds < LATE_S else "yellow" if seconds < STALE_S else "red"
    return Text(duration(seconds), style=style)


def _rate(value: float | None, style: str) -> Text:
    return Text(rate(value), style=style if value else "")


def _trouble(count: int | None, style: str) -> Text:
    return Text(amount(count), style=style if count else "")


def _low(text: str, low: bool) -> Text:
    return Text(text, style="yellow" if low else "")


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

QUEUES: tuple[tuple[str, int, Callable[[Queue], Text]], ...] = (
    ("queue", 14, lambda queue: Text(queue.name)),
    ("waits", 6, lambda queue: Text(amount(queue.waiting))),
    ("tokens", 6, lambda queue: Text(amount(queue.tokens))),
    ("oldest", 6, lambda queue: Text(duration(queue.oldest_s) if queue.waiting else NOTHING)),
    ("in/s", 6, lambda queue: Text(rate(queue.admitted))),
    ("defer/s", 7, lambda queue: _rate(queue.deferred, "yellow")),
    ("shed/s", 6, lambda queue: _rate(queue.shed, "red")),
    ("depth", 5, lambda queue: Text(amount(queue.depth))),
)
