"""Cron means what cron means: weekdays from Sunday, ranges over the week's end, the time zone's clock."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipeline.cron import DAYS, cron_trigger

fields = st.sampled_from(["*", "*/2", "1-5", "0", "7", "5-7", "6-1", "mon-fri", "sat,sun", "1,3,5", "2/2", "0-6/3"])


def days_by_hand(field: str) -> set[str]:
    """The weekdays that a field names, by going round the week from each start."""
    week, named = [*DAYS, "sun"], set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = ("0-6" if span == "*" else span).partition("-")
        here, end = (
            week.index(one) if one in week else int(one) for one in (first, last or (first if not step else "6"))
        )
        walked = 0
        while True:
            if walked % int(step or 1) == 0:
                named.add(week[here])
            if week[here] == week[end]:
                break
            here, walked = (0 if here == 6 else here + 1) if here != 7 else 1, walked + 1
    return named


@given(fields, st.integers(0, 23), st.integers(0, 59))
@hypothesis_settings(max_examples=40, deadline=None)
def test_cron_fires_on_the_weekdays_that_cron_names(field, hour, minute):
    trigger, now = cron_trigger(f"{minute} {hour} * * {field}", "UTC"), datetime(2026, 11, 1, tzinfo=UTC)
    fired = []
    while len(fired) < 14:
        now = trigger.get_next_fire_time(None, now)
        fired.append(now)
        now += timedelta(seconds=1)
    assert {(one.hour, one.minute, one.second) for one in fired} == {(hour, minute, 0)}
    assert {DAYS[one.isoweekday() % 7] for one in fired} == days_by_hand(field)


def test_cron_goes_by_its_time_zone():
    trigger = cron_trigger("30 2 * * *", "Asia/Tokyo")
    fired = trigger.get_next_fire_time(None, datetime(2026, 11, 1, tzinfo=UTC))
    assert fired.astimezone(UTC) == datetime(2026, 11, 1, 17, 30, tzinfo=UTC)
