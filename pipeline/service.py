"""`raydissect reprocess SCHEDULE --serve`: run a schedule by its cron expression until told to stop.

The scheduler is APScheduler 3. Firings never overlap: one thread runs them, and times that pass meanwhile are part
of the firing that runs. Until when times were served is in the store, so that what passed while no service ran, or
was cut short, is made up for once at the next start.
"""

import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from pipeline.children import OnLine
from pipeline.cron import cron_trigger
from pipeline.errors import FAILED, LeaseHeldError, RaydissectError, SettingsError, StoreError
from pipeline.hook import tell
from pipeline.reprocess import OnPlan, Outcome, Stop, failure_body, reprocess
from pipeline.schedule import Schedule, read_schedule
from pipeline.store import Store

logger = logging.getLogger("raydissect")

CRON, ONCE = "cron", "once"
"""The scheduler's two jobs: at the schedule's times, and once: for a missed firing, or when a lease is free."""

POLL = 0.2


class Service:
    """A schedule file that is run again and again.

    Args:
        path: the schedule file, read again before every firing.
        stop: asks to end; a firing that runs is interrupted.
        on_plan: told the plan of every firing.
        on_line: told every line that tasks say.

    Raises:
        SettingsError: the file is no schedule with a cron expression.
    """

    def __init__(self, path: Path, stop: Stop, on_plan: OnPlan, on_line: OnLine) -> None:
        self._path, self._stop, self._on_plan, self._on_line = path, stop, on_plan, on_line
        self._schedule = self._read()
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def run(self) -> None:
        """Serve until asked to stop."""
        schedule = self._schedule
        self._scheduler.add_job(self.fire, cron_trigger(schedule.cron or "", schedule.timezone), id=CRON)
        if missed := self.missed(datetime.now(UTC)):
            logger.info("schedule %s: the firing of %s was missed and runs now", schedule.name, missed)
            self._scheduler.add_job(self.fire, id=ONCE)
        self._scheduler.start()
        try:
            logger.info("schedule %s: serving %s (%s)", schedule.name, schedule.cron, schedule.timezone)
            while not self._stop.asked:
                time.sleep(POLL)
        finally:
            self._stop.asked = True
            self._scheduler.shutdown(wait=True)

    def missed(self, now: datetime) -> datetime | None:
        """The first time since what was served last that has passed; at a first start there is none."""
        store, schedule = Store(self._schedule.store), self._schedule
        if not store.exists(_state_path(schedule)):
            self._served(schedule, now)
            return None
        served = datetime.fromisoformat(store.read_json(_state_path(schedule))["served_until"])
        trigger = cron_trigger(schedule.cron or "", schedule.timezone)
        due = trigger.get_next_fire_time(None, served + timedelta(microseconds=1))
        return due if due is not None and due <= now else None

    def fire(self) -> None:
        """Run the schedule as its file is now; whatever goes wrong is logged and told, and the next firing comes."""
        if self._stop.asked:
            return
        try:
            self._schedule = schedule = self._read()
            self._scheduler_follows(schedule)
            outcome = reprocess(schedule, self._stop, self._on_plan, self._on_line)
        except KeyboardInterrupt:
            return  # not served: it goes on at the next start
        except LeaseHeldError as error:
            again = datetime.fromtimestamp(max(error.free, time.time() + 1), UTC)
            logger.warning("schedule %s waits: %s", self._schedule.name, error)
            self._scheduler.add_job(self.fire, "date", run_date=again, id=ONCE, replace_existing=True)
            return
        except RaydissectError as error:
            self._failed(error, error.exit_code)
        except Exception as error:
            logger.exception("schedule %s: an unforeseen error", self._schedule.name)
            self._failed(error, FAILED)
        else:
            logger.info("schedule %s: %s", schedule.name, summary(outcome))
        self._served(self._schedule, datetime.now(UTC))

    def _read(self) -> Schedule:
        schedule = read_schedule(self._path)
        if schedule.cron is None:
            raise SettingsError(f"schedule {self._path} has no cron, which --serve runs it by: such as cron: 0 3 * * *")
        return schedule

    def _scheduler_follows(self, schedule: Schedule) -> None:
        """Take over the file's times, where they changed."""
        job, trigger = self._scheduler.get_job(CRON), cron_trigger(schedule.cron or "", schedule.timezone)
        if job is not None and str(job.trigger) != str(trigger):
            self._scheduler.reschedule_job(CRON, trigger=trigger)

    def _failed(self, error: Exception, code: int) -> None:
        """The last schedule that could be read is good for telling of it, and for nothing else."""
        logger.error("schedule %s: this firing failed: %s", self._schedule.name, error)
        tell(self._schedule.on_failure, failure_body(self._schedule, code, str(error)))

    def _served(self, schedule: Schedule, until: datetime) -> None:
        try:
            Store(schedule.store).write_json(_state_path(schedule), {"served_until": until.isoformat()})
        except StoreError as error:
            logger.error("schedule %s: that it was served could not be kept: %s", schedule.name, error)


def summary(outcome: Outcome) -> str:
    """An outcome in a line."""
    text = f"{len(outcome.found)} tasks found done, {len(outcome.computed)} computed, {len(outcome.failed)} failed"
    if outcome.removed is not None:
        text += f"; retention removed {len(outcome.removed.files):,} files, {outcome.removed.bytes / 1e6:,.1f} MB"
    return text


def _state_path(schedule: Schedule) -> str:
    return f"reprocess/schedules/{schedule.name}.json"
