"""When an alert may be shown to its person: cadence, digest and quiet hours. Pure; local times by zoneinfo.

First form: every alert goes to the feed at once and says from when on it may be shown. AUTO is INSTANT for now.
A local time that a change to daylight saving skips is read as if the clock had not been changed; one that comes twice
is its first.

Where it stands: life-of-an-alert.md, step 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from penstock.jobs.operators.identity import content_id
from penstock.schemas.events import Cadence, QuietHours

DIGEST_AT = "08:00"  # where a subscription says no digest_at
MONDAY = 0
DIGESTS = (Cadence.HOURLY, Cadence.DAILY, Cadence.WEEKLY)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """What of a subscription decides when its alerts may be shown."""

    cadence: Cadence
    time_zone: str
    quiet_hours: QuietHours | None
    digest_at: str | None


@dataclass(frozen=True, slots=True)
class Delivery:
    after: int | None  # epoch ms; None: at once
    window: str | None  # of the digest it belongs to; None: it stands alone


def local_day(now_ms: int, time_zone: str) -> date:
    return _at(now_ms, time_zone).date()


def decide_delivery(rhythm: Rhythm, now_ms: int) -> Delivery:
    """When an alert made now may be shown."""
    moment, window = now_ms, None
    if rhythm.cadence in DIGESTS:
        moment = next_digest(rhythm, now_ms)
        window = f"{rhythm.cadence.value}/{moment}"
    if rhythm.quiet_hours is not None:
        moment = end_of_quiet(rhythm.quiet_hours, rhythm.time_zone, moment)
    return Delivery(after=moment if moment > now_ms else None, window=window)


def digest_id(tenant: str, person_id: str, window: str) -> str:
    """32 hex digits, a function of the person and the window."""
    return content_id("digest", tenant, person_id, window)


def next_digest(rhythm: Rhythm, now_ms: int) -> int:
    """The first digest moment after `now_ms`, epoch ms."""
    at = _clock(rhythm.digest_at or DIGEST_AT)
    if rhythm.cadence is Cadence.HOURLY:
        return _next_minute(at.minute, rhythm.time_zone, now_ms)
    weekday = MONDAY if rhythm.cadence is Cadence.WEEKLY else None
    return _next(at, rhythm.time_zone, now_ms, weekday)


def end_of_quiet(quiet: QuietHours, time_zone: str, moment_ms: int) -> int:
    """`moment_ms` itself, or the end of the quiet hours it falls into."""
    start, end = _clock(quiet.start), _clock(quiet.end)
    local = _at(moment_ms, time_zone).time()
    within = start <= local < end if start < end else local >= start or local < end
    return _next(end, time_zone, moment_ms) if within else moment_ms


# --- how ---------------------------------------------------------------------------------------------------------


def _next(at: time, time_zone: str, after_ms: int, weekday: int | None = None) -> int:
    """When the clocks there next read `at`, on that weekday (0 is Monday) if one is given."""
    zone = ZoneInfo(time_zone)
    day = _at(after_ms, time_zone).date()
    while True:
        moment = _epoch_ms(datetime.combine(day, at, zone))
        if moment > after_ms and weekday in (None, day.weekday()):
            return moment
        day += timedelta(days=1)


def _next_minute(minute: int, time_zone: str, after_ms: int) -> int:
    """When the clocks there next read xx:`minute`."""
    moment = after_ms - after_ms % 60_000
    while True:  # once, and again where the clocks are changed by part of an hour
        local = _at(moment, time_zone)
        ahead = (minute - local.minute) % 60
        if ahead == 0 and moment > after_ms:
            return moment
        moment += (ahead or 60) * 60_000


def _at(moment_ms: int, time_zone: str) -> datetime:
    return datetime.fromtimestamp(moment_ms / 1000, ZoneInfo(time_zone))


def _epoch_ms(local: datetime) -> int:
    return int(local.astimezone(UTC).timestamp()) * 1000


def _clock(text: str) -> time:
    return time(int(text[:2]), int(text[3:]))
