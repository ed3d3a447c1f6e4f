"""The searches at the end of a demo, shown as `penstock search` shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from penstock.infra.demo import sample
from penstock.infra.demo.rankings import RankingFailed, ask
from penstock.infra.demo.view import View
from penstock.ranker.client import RankerClient
from penstock.retrieval.client import RetrievalClient
from penstock.schemas.grpc_avro import CallError


def examples(queries: Sequence[sample.Query], *, own: bool) -> list[sample.Query]:
    """What to show: the first of anyone's `own` queries, or those that suit the sample."""
    if own:
        return list(queries[:3])
    return [sample.query(f"example-{number}", text) for number, text in enumerate(sample.EXAMPLES)]


def shown_searches(
    queries: Sequence[sample.Query],
    ranker: RankerClient,
    retrieval: RetrievalClient,
    view: View,
    run_id: str,
    clock: Callable[[], int],
) -> Iterator[Mapping[str, Any]]:
    """Each search as the report keeps it, shown on the way."""
    from penstock.infra.cli import search

    for query in queries:
        try:
            result = ask(ranker, query, request_id=f"{run_id}-{query.query_id}", size=5, now_ms=clock())
        except (RankingFailed, CallError) as error:
            view.say(str(error), style="red")
            yield {"query": query.event.text, "error": str(error)}
            continue
        rows = search.fetch(retrieval, [item.posting_id for item in result.items])
        view.say("")
        search.show(query.event.text, result, rows)
        document = search.result_json(result, rows)
        yield {
            "query": query.event.text,
            "understood": document["understood"],
            "degraded": list(result.degraded),
            "total": result.total,
            "items": [
                {
                    "posting_id": item["posting_id"],
                    "score": item["score"],
                    "title": None if item["posting"] is None else item["posting"]["title"],
                }
                for item in document["items"]
            ],
            "timings": dict(result.timings),
        }
