"""`penstock search` and `penstock get`: what a person may ask of the index.

Where it stands: life-of-a-query.md, step 1.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from penstock.schemas.events import Attributes, Filter, RankRequest, RankResult
    from penstock.schemas.rpc import ExplainReply, Row

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]

FILTER_HELP = (
    "A hard filter, repeatable: remote=REMOTE, salary.annual_max>=60000, location~39.96,-82.99,50km, "
    "!company=Initech; FIELD?=… lets postings without the attribute through."
)
PANEL = "Postings and queries"


def register(app: typer.Typer) -> None:
    """Add `search` and `get` to `app`."""
    app.command(rich_help_panel=PANEL)(search)
    app.command(rich_help_panel=PANEL)(get)


def complete_filter(incomplete: str) -> list[tuple[str, str]]:
    """The fields that a filter may begin with, each with the operator it takes and what it is."""
    from penstock.schemas.filters import FIELDS, FieldType

    operators = {FieldType.NUMBER: ">=", FieldType.TIME: ">=", FieldType.PLACE: "~"}
    offers = [(f"{name}{operators.get(spec.type, '=')}", spec.doc) for name, spec in FIELDS.items()]
    return [(offer, doc) for offer, doc in offers if offer.startswith(incomplete)]


def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for, in words.")],
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", "-f", metavar="F", help=FILTER_HELP, autocompletion=complete_filter),
    ] = None,
    size: Annotated[int, typer.Option("--size", "-n", min=1, max=1000, help="How many postings.")] = 10,
    cursor: Annotated[str | None, typer.Option("--cursor", help="next_cursor of the page before.")] = None,
    deadline_ms: Annotated[
        int, typer.Option("--deadline-ms", min=1, max=3_600_000, help="How long the answer is of use.")
    ] = 10_000,
    tenant: Annotated[str, typer.Option("--tenant", help="Whose postings.")] = "default",
    explain: Annotated[
        bool, typer.Option("--explain", help="What each score is made of, and what each filter does.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rank postings for a query, as the ranker would for anyone.

    Filters given with --filter are hard.
    What is understood from the words excludes only postings known to violate it.
    """
    # A wrong argument is told before the clients, which take a while to import.
    request = _request(text, tenant, parse_filters(filters or []), size, cursor, deadline_ms)

    from penstock.infra.cli import output
    from penstock.infra.settings import load
    from penstock.ranker.client import RankerClient
    from penstock.retrieval.client import RetrievalClient, shard_addresses
    from penstock.schemas import jsonl

    settings = load()
    with closing(RankerClient(settings.ranker.dial)) as ranker:
        result = ranker.rank(request, timeout=deadline_ms / 1000 + 1)
    if result.error is not None:
        raise SearchFailed(f"no answer: {result.error}")
    with closing(RetrievalClient(shard_addresses(settings.retrieval))) as retrieval:
        rows = fetch(retrieval, [item.posting_id for item in result.items])
        explanation = _explained(retrieval, request, result) if explain else None
    if as_json:
        document = result_json(result, rows)
        if explanation is not None:
            document["explanation"] = jsonl.to_json(explanation)
        output.emit(document)
    else:
        show(text, result, rows, explain=explain)
        if explanation is not None:
            _show_explanation(explanation)


class SearchFailed(Exception):
    """The ranker answered that it has no answer."""


def parse_filters(clauses: list[str]) -> Filter | None:
    """The conjunction of clauses in text form. Raises a usage error naming the field at fault."""
    from penstock.schemas import filters
    from penstock.schemas.errors import InvalidRecord

    parsed = []
    for clause in clauses:
        try:
            parsed.append(filters.parse(clause))
        except InvalidRecord as error:
            raise typer.BadParameter(f"{clause!r}: {error}", param_hint="--filter") from error
    return filters.all_of(*parsed)


def _request(
    text: str, tenant: str, tree: Filter | None, size: int, cursor: str | None, deadline_ms: int
) -> RankRequest:
    import uuid

    from penstock.infra.cli.output import now_ms
    from penstock.schemas.errors import InvalidRecord
    from penstock.schemas.events import Page, RankQuery, RankRequest
    from penstock.schemas.validate import MAX_QUERY_BYTES, check_id

    if not text.strip() and tree is None:
        raise typer.BadParameter("words, or a --filter", param_hint="TEXT")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_QUERY_BYTES:
        raise typer.BadParameter(f"at most {MAX_QUERY_BYTES} bytes", param_hint="TEXT")
    try:
        check_id("tenant", tenant)
    except InvalidRecord as error:
        raise typer.BadParameter(str(error), param_hint="--tenant") from error
    now = now_ms()
    return RankRequest(
        request_id=f"cli-{uuid.uuid4().hex}",
        tenant=tenant,
        deadline=now + deadline_ms,
        query=RankQuery(text=text, filters=tree),
        page=Page(size=size, cursor=cursor),
        produced_at=now,
    )


def fetch(retrieval: Any, posting_ids: list[str]) -> dict[str, Row]:
    """Rows by id, for titles and the like. `retrieval` is a RetrievalClient."""
    from penstock.schemas.rpc import GetRequest

    rows: dict[str, Row] = {}
    for start in range(0, len(posting_ids), 500):
        part = tuple(posting_ids[start : start + 500])
        rows.update({row.posting_id: row for row in retrieval.get(GetRequest(posting_ids=part), timeout=10.0).rows})
    return rows


def _explained(retrieval: Any, request: RankRequest, result: RankResult) -> ExplainReply | None:
    """What each clause that decided does to the tenant's postings. `retrieval` is a RetrievalClient."""
    from penstock.schemas import filters
    from penstock.schemas.rpc import ExplainRequest

    tree = filters.all_of(request.query.filters, *(one.filter for one in result.understood if one.applied))
    if tree is None:
        return None
    reply: ExplainReply = retrieval.explain(ExplainRequest(tenant=request.tenant, filters=tree), timeout=10.0)
    return reply


# --- showing -----------------------------------------------------------------------------------------------------


def result_json(result: RankResult, rows: dict[str, Row]) -> dict[str, Any]:
    """The rank result with each item's attributes beside it."""
    from penstock.schemas import jsonl

    document = jsonl.to_json(result)
    for item in document.setdefault("items", []):
        attributes = attributes_of(rows.get(item["posting_id"]))
        item["posting"] = None if attributes is None else jsonl.to_json(attributes)
    document["understood"] = [{"text": sentence, **jsonl.to_json(u)} for u, sentence in understood(result)]
    return document


def attributes_of(row: Row | None) -> Attributes | None:
    return None if row is None or row.update is None else row.update.attributes


def understood(result: RankResult) -> list[tuple[Any, str]]:
    """Each thing read from the words with a sentence: its label, its filter, whether it was applied and why not."""
    from penstock.schemas.filters import describe

    out = []
    for item in result.understood:
        verdict = "applied" if item.applied else "not applied"
        if not item.applied and item.needs_values:
            verdict += ": no posting here has this value"
        out.append((item, f"{item.label} [{describe(item.filter)}] {verdict}"))
    return out


def place_of(attributes: Attributes) -> str:
    place = attributes.location
    if place is None:
        return "remote" if attributes.remote == "REMOTE" else ""
    named = ", ".join(part for part in (place.city, place.region, place.country) if part)
    return place.text or named


def show(text: str, result: RankResult, rows: dict[str, Row], *, explain: bool = False) -> None:
    """The result as a table with what was understood, what was degraded and where the time went."""
    from rich.markup import escape

    from penstock.infra.cli import output

    console, now = output.out(), output.now_ms()
    columns = ["#", "score", "title", "company", "place", "posted", *(["made of"] if explain else [])]
    table = output.table(*columns, right=("#", "score"), fold=("title", "company", "place", "made of"))
    for rank, item in enumerate(result.items, 1):
        attributes = attributes_of(rows.get(item.posting_id))
        if attributes is None:
            told, posted = [f"{item.posting_id} (withdrawn since)", "", ""], ""
        else:
            told = [attributes.title, attributes.company or "", place_of(attributes)]
            posted = output.ago(attributes.posted_at, now)
        made_of = [" ".join(f"{name} {value:.3g}" for name, value in sorted(item.parts.items()))] if explain else []
        table.add_row(str(rank), f"{item.score:.3f}", *map(output.cut, told), posted, *made_of)
    console.print(f"[bold]{escape(text)}[/bold]")
    if result.items:
        console.print(table)
    else:
        console.print("No posting passes the filters.")
    for item, sentence in understood(result):
        shown = sentence if explain else f"{item.label} ({sentence.rsplit('] ', 1)[1]})"
        console.print(f"understood: {escape(shown)}", style="green" if item.applied else "yellow")
    for reason in result.degraded:
        console.print(f"degraded: {escape(reason)}", style="yellow")
    console.print(escape(_timings(result)), style="dim")


def _show_explanation(explanation: ExplainReply) -> None:
    from rich.markup import escape

    from penstock.infra.cli import output

    table = output.table("filter", "lets through", "of", "lack it", right=("lets through", "of", "lack it"))
    for clause in explanation.clauses:
        table.add_row(output.cut(clause.clause), str(clause.passed), str(explanation.postings), str(clause.missing))
    if len(explanation.clauses) > 1:
        table.add_row("all of it", str(explanation.passed), str(explanation.postings), "")
    output.out().print(table)
    for line in explanation.plan:
        output.out().print(escape(line), style="dim")


def _timings(result: RankResult) -> str:
    stages = " · ".join(f"{stage} {millis:.0f} ms" for stage, millis in result.timings.items())
    counts = f"{len(result.items)} of {result.total} that pass · depth {result.depth_served}"
    model = f" · {result.model_id}" if result.model_id else ""
    return f"{counts} · {stages}{model}" if stages else counts + model


# --- get ---------------------------------------------------------------------------------------------------------


def get(
    posting_id: Annotated[str, typer.Argument(metavar="ID", help="The posting's id.")],
    min_version: Annotated[
        int | None, typer.Option("--min-version", min=0, help="Wait until this version is searchable.")
    ] = None,
    wait_ms: Annotated[int, typer.Option("--wait-ms", min=1, help="How long --min-version waits.")] = 5_000,
    as_json: AsJson = False,
) -> None:
    """Show what the index holds of one posting.

    Exit code 1 when it holds nothing, or not the version waited for.
    """
    from penstock.infra.cli import output
    from penstock.infra.settings import load
    from penstock.retrieval.client import RetrievalClient, shard_addresses
    from penstock.schemas.events import MinVersion
    from penstock.schemas.rpc import GetRequest, RowState

    wanted = None if min_version is None else MinVersion(posting_id=posting_id, version=min_version)
    request = GetRequest(posting_ids=(posting_id,), min_version=wanted, timeout_ms=wait_ms)
    with closing(RetrievalClient(shard_addresses(load().retrieval))) as retrieval:
        reply = retrieval.get(request, timeout=wait_ms / 1000 + 5)
    row = reply.rows[0]
    if as_json:
        output.emit({**_row_json(row), "degraded": list(reply.degraded)})
    elif row.state is not RowState.ABSENT:
        _show_row(row)
    for reason in reply.degraded:
        output.say(f"degraded: {reason}", style="yellow")
    if row.state is RowState.ABSENT:
        output.say(f"the index has no posting {posting_id!r}")
    behind = min_version is not None and (row.update is None or row.update.version < min_version)
    if row.state is RowState.ABSENT or behind:
        raise typer.Exit(1)


def _row_json(row: Row) -> dict[str, Any]:
    """The row without the vector's bytes, which say nothing to a reader."""
    from penstock.schemas import jsonl

    document = jsonl.to_json(row)
    vector = document.get("update", {}).get("vector")
    if vector is not None:
        for plane in ("dense", "sketch"):
            vector.pop(plane, None)
    return document


def _show_row(row: Row) -> None:
    from rich.markup import escape

    from penstock.infra.cli import output
    from penstock.schemas.times import format_time

    table = output.table("field", "value", fold=("value",))
    document = _row_json(row)
    update = document.pop("update", None) or {}
    flat = {**document, **{name: value for name, value in update.items() if name not in ("posting_id", "trace")}}
    for name, value in _flat("", flat):
        shown = format_time(value) if name.endswith("_at") and isinstance(value, int) else str(value)
        table.add_row(name, escape(shown))
    output.out().print(table)


def _flat(prefix: str, document: dict[str, Any]) -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for name, value in document.items():
        if isinstance(value, dict):
            out += _flat("" if name == "attributes" else f"{prefix}{name}.", value)
        elif value != "UNKNOWN":
            out.append((prefix + name, ", ".join(map(str, value)) if isinstance(value, list) else value))
    return out
