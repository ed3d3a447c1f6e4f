"""The slow lane, through the real broker, Flink and roles: postings refined when all is well, healed when not."""

import pytest
from system import eventually, posting

from penstock.schemas import topics
from penstock.schemas.filters import is_in
from penstock.schemas.grpc_avro import CallError, Client
from penstock.schemas.rpc import EnrichWorkers, GetRequest, RoleStatus, StatusRequest

DENSE_BYTES = 2 * 384


@pytest.fixture
def workers(system):
    client = Client(system.settings.enrich.dial)
    yield client
    client.close()


def status(client: Client) -> RoleStatus:
    reply: RoleStatus = client.call(EnrichWorkers.STATUS, StatusRequest(), 20)
    return reply


def held(system, posting_id: str):
    """What retrieval holds of the posting now; None while it has none."""
    return system.retrieval.get(GetRequest(posting_ids=(posting_id,)), timeout=20).rows[0].update


def revised(system, posting_id: str, encoder_id: str):
    """The row, once its vector is that encoder's."""

    def reached():
        update = held(system, posting_id)
        made = update is not None and update.vector is not None and update.vector.encoder_id == encoder_id
        return update if made else None

    return eventually(reached, f"{posting_id} with a vector of {encoder_id}", timeout=90)


def revisions(system, posting_id: str) -> list[int]:
    return [update.revision for update in system.read(topics.INDEX) if update.posting_id == posting_id]


def test_a_posting_is_refined_in_the_same_space_and_version(system, workers):
    p = posting(system.new_id("refined"))
    system.publish(topics.POSTINGS, p)
    first = system.row(p.posting_id, version=1).update
    texts = status(workers).texts
    update = revised(system, p.posting_id, texts["encoder_id"])
    assert (update.version, update.revision) == (1, 1)
    assert update.vector.space_id == texts["space_id"]
    assert len(update.vector.dense) == DENSE_BYTES
    assert update.summary and update.item_text
    assert update.attributes == first.attributes
    assert revisions(system, p.posting_id) == [0, 1]
    found = system.search("veterinary nurse", filters=is_in("posting_id", p.posting_id))
    assert [(item.posting_id, item.revision) for item in found.items] == [(p.posting_id, 1)]


def test_the_role_says_how_it_is(workers):
    said = status(workers)
    assert said.ready, said.reason
    assert {"lag", "heal_lag", "healed", "refined", "skipped", "rate_per_s"} <= set(said.numbers)
    assert said.texts["priority"]
    assert said.texts["encoder_id"] != said.texts["heal_encoder_id"]


@pytest.mark.installation("embedded")
def test_without_the_models_role_postings_are_found_by_filters_and_words_and_healed_later(system, machinery, workers):
    company = system.new_id("bare")
    vet = posting(system.new_id("vet"), company=company)
    baker = posting(
        system.new_id("baker"), company=company, title="Baker", description="Bake rye bread at night in a small shop."
    )
    settled = posting(system.new_id("before"))
    system.publish(topics.POSTINGS, settled)
    system.row(settled.posting_id, version=1)
    with machinery.stopped("models"):
        system.publish(topics.POSTINGS, vet, baker)
        for p in (vet, baker):
            assert system.row(p.posting_id, version=1).update.attributes.title == p.title
        ours = is_in("company", company)

        def found(words: str) -> list[str] | None:
            result = system.search(words, filters=ours)
            if not any("words alone" in note for note in result.degraded):
                return None
            return [item.posting_id for item in result.items]

        assert eventually(lambda: found("rye bread"), "an answer by words alone")[0] == baker.posting_id
        assert found("surgery on animals")[0] == vet.posting_id
        texts = status(workers).texts
        for p in (vet, baker):  # healed by the workers' own encoder, the models role being away all the while
            revised(system, p.posting_id, texts["encoder_id"])
    eventually(lambda: models_answer(system), "the models role is back", timeout=90)
    for p in (vet, baker):
        seen = revisions(system, p.posting_id)
        assert seen[0] == -1, "published before any vector"
        assert seen == sorted(set(seen)) and seen[-1] >= 1

    def meant() -> bool:
        result = system.search("somebody to look after pets", filters=ours)
        return not result.degraded and result.items[0].posting_id == vet.posting_id

    eventually(meant, "the healed postings are found by meaning")


def models_answer(system) -> bool:
    try:
        return system.models.status(timeout=5).ready
    except CallError:
        return False
