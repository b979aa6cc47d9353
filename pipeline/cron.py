"""Cron expressions as cron reads them, for a scheduler that counts weekdays from Monday."""

from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.triggers.cron import CronTrigger

DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def cron_trigger(expression: str, timezone: str) -> CronTrigger:
    """The times that an expression of five fields names: minute, hour, day, month, weekday (0 and 7 are Sunday).

    Raises:
        ValueError: it is none, or there is no such time zone.
    """
    fields = expression.split()
    if len(fields) != 5:
        raise ValueError(f"{expression!r} has {len(fields)} fields, must have 5: minute hour day month weekday")
    if fields[2] != "*" and fields[4] != "*":
        raise ValueError(
            f"{expression!r} sets both a day and a weekday, of which cron programs take either or both; set one"
        )
    try:
        fields[4] = _weekdays(fields[4])
        return CronTrigger.from_crontab(" ".join(fields), timezone=time_zone(timezone))
    except ValueError as error:
        raise ValueError(f"{expression!r} is no cron expression: {error}") from error


def time_zone(name: str) -> ZoneInfo:
    """A time zone by its name, as `Europe/Berlin`.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError, ValueError) as error:
        raise ValueError(f"there is no time zone {name!r}; names are such as UTC or Europe/Berlin") from error


def _weekdays(field: str) -> str:
    """A field's weekdays by their names, which mean the same to everyone."""
    if field == "*":
        return field
    days: set[int] = set()
    for part in field.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        if slash and (not step.isdecimal() or int(step) == 0):
            raise ValueError(f"weekday {part!r} has no whole step after its /")
        low, high = (0, 6) if span == "*" else (_weekday(first), _weekday(last) if dash else _weekday(first))
        if slash and not dash:
            high = 6
        days |= {day % 7 for day in range(low, high + (7 if high < low else 0) + 1, int(step or 1))}
    return ",".join(DAYS[day] for day in sorted(days))


def _weekday(text: str) -> int:
    if text.lower() in DAYS:
        return DAYS.index(text.lower())
    if text.isdecimal() and int(text) <= 7:
        return int(text)
    raise ValueError(f"weekday is {text!r}, must be 0 to 7 or among {', '.join(DAYS)}")
