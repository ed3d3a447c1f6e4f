"""When an alert may be shown: cadences, quiet hours, and clocks that are changed."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.jobs.operators.delivery_time import Rhythm, decide_delivery, digest_id
from penstock.schemas.events import Cadence, QuietHours

NEW_YORK = "America/New_York"  # clocks forward 2026-03-08 02:00, back 2026-11-01 02:00
HALF_AN_HOUR = "Australia/Lord_Howe"  # clocks are changed by 30 minutes


def at(text: str, zone: str = NEW_YORK, fold: int = 0) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp() * 1000)


def rhythm(cadence=Cadence.INSTANT, quiet=None, digest_at=None, zone=NEW_YORK) -> Rhythm:
    return Rhythm(cadence, zone, QuietHours(start=quiet[0], end=quiet[1]) if quiet else None, digest_at)


NIGHT = ("22:00", "07:00")


@pytest.mark.parametrize(
    ("given", "now", "expected"),
    [
        (rhythm(), "2026-06-01T12:00", None),
        (rhythm(Cadence.AUTO), "2026-06-01T12:00", None),
        (rhythm(quiet=NIGHT), "2026-06-01T21:59", None),
        (rhythm(quiet=NIGHT), "2026-06-01T22:00", "2026-06-02T07:00"),
        (rhythm(quiet=NIGHT), "2026-06-02T06:59", "2026-06-02T07:00"),
        (rhythm(quiet=NIGHT), "2026-06-02T07:00", None),
        (rhythm(quiet=("12:00", "13:30")), "2026-06-01T12:59", "2026-06-01T13:30"),
        (rhythm(quiet=("12:00", "13:30")), "2026-06-01T11:59", None),
        (rhythm(Cadence.HOURLY), "2026-06-01T12:00", "2026-06-01T13:00"),
        (rhythm(Cadence.HOURLY, digest_at="09:20"), "2026-06-01T12:05", "2026-06-01T12:20"),
        (rhythm(Cadence.DAILY), "2026-06-01T07:59", "2026-06-01T08:00"),
        (rhythm(Cadence.DAILY, digest_at="18:30"), "2026-06-01T18:30", "2026-06-02T18:30"),
        (rhythm(Cadence.WEEKLY, digest_at="09:00"), "2026-06-01T08:00", "2026-06-01T09:00"),  # a Monday
        (rhythm(Cadence.WEEKLY, digest_at="09:00"), "2026-06-01T09:00", "2026-06-08T09:00"),
        (rhythm(Cadence.HOURLY, quiet=NIGHT), "2026-06-01T21:30", "2026-06-02T07:00"),
        # Forward: 23 hours to the same time of the next day, and a time that does not exist comes an hour later.
        (rhythm(Cadence.DAILY, digest_at="08:00"), "2026-03-07T09:00", "2026-03-08T08:00"),
        (rhythm(Cadence.DAILY, digest_at="02:30"), "2026-03-07T12:00", "2026-03-08T03:30"),
        (rhythm(quiet=("22:00", "02:30")), "2026-03-07T23:00", "2026-03-08T03:30"),
        (rhythm(Cadence.HOURLY), "2026-03-08T01:30", "2026-03-08T03:00"),
        # Back: 25 hours, and of a time that comes twice the first.
        (rhythm(Cadence.DAILY, digest_at="08:00"), "2026-10-31T09:00", "2026-11-01T08:00"),
        (rhythm(Cadence.DAILY, digest_at="01:30"), "2026-10-31T12:00", "2026-11-01T01:30"),
        (rhythm(quiet=NIGHT), "2026-10-31T23:00", "2026-11-01T07:00"),
    ],
)
def test_when_an_alert_may_be_shown(given, now, expected):
    delivery = decide_delivery(given, at(now))
    assert delivery.after == (at(expected) if expected else None)
    assert (delivery.window is None) == (given.cadence in (Cadence.INSTANT, Cadence.AUTO))


def test_an_hour_that_comes_twice_has_two_hourly_digests():
    first = decide_delivery(rhythm(Cadence.HOURLY, digest_at="00:15"), at("2026-11-01T01:00"))
    assert first.after == at("2026-11-01T01:15")
    second = decide_delivery(rhythm(Cadence.HOURLY, digest_at="00:15"), at("2026-11-01T01:20"))
    assert second.after == at("2026-11-01T01:15", fold=1)
    assert second.after - first.after == 3_600_000
    assert first.window != second.window


@given(
    st.integers(at("2026-01-01T00:00"), at("2027-12-31T00:00")),
    st.sampled_from([Cadence.HOURLY, Cadence.DAILY, Cadence.WEEKLY]),
    st.sampled_from([NEW_YORK, "UTC", "Asia/Kathmandu", HALF_AN_HOUR, "Pacific/Apia"]),
    st.times(),
)
def test_a_digest_is_ahead_by_no_more_than_its_window_and_reads_its_time(now, cadence, zone, clock):
    given = rhythm(cadence, digest_at=f"{clock:%H:%M}", zone=zone)
    after = decide_delivery(given, now).after
    longest = {Cadence.HOURLY: 1, Cadence.DAILY: 24, Cadence.WEEKLY: 7 * 24}[cadence] + 1
    assert 0 < after - now <= longest * 3_600_000
    local = datetime.fromtimestamp(after / 1000, ZoneInfo(zone))
    assert local.second == 0
    if local.utcoffset() == datetime.fromtimestamp(now / 1000, ZoneInfo(zone)).utcoffset():
        assert local.minute == clock.minute
    # Whoever asks in between gets the same window.
    assert decide_delivery(given, (now + after) // 2) == decide_delivery(given, now)


@given(st.integers(at("2026-01-01T00:00"), at("2027-12-31T00:00")), st.times(), st.times())
def test_nothing_is_shown_in_quiet_hours_unless_a_clock_is_changed(now, start, end):
    start_text, end_text = f"{start:%H:%M}", f"{end:%H:%M}"
    if start_text == end_text:
        return
    given = rhythm(quiet=(start_text, end_text), zone="Asia/Kathmandu")
    after = decide_delivery(given, now).after
    shown = datetime.fromtimestamp((after or now) / 1000, ZoneInfo("Asia/Kathmandu"))
    clock = f"{shown:%H:%M}"
    within = start_text <= clock < end_text if start_text < end_text else clock >= start_text or clock < end_text
    assert not within


def test_digests_are_named_by_person_and_window():
    names = {digest_id(*parts) for parts in [("t", "p", "w"), ("t", "p", "v"), ("t", "q", "w"), ("tp", "", "w")]}
    assert len(names) == 4
    assert digest_id("t", "p", "w") == digest_id("t", "p", "w")
