"""Where a training was taken up again, and whether it went on as it had stopped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite

from ckpt_tools.model.values import whole
from ckpt_tools.ops import logs, seams
from ckpt_tools.ops.history_files import Facts, Start
from ckpt_tools.reports.history import Note, Seam, Sign, State, Stored
from ckpt_tools.reports.units import count

MOST_SEAMS = 50
SKIPPED = 20
_NUMBERED = re.compile(r"(?:checkpoint|global_step|step)[-_]?(\d{1,18})\Z")
_RESUME = "resume_from_checkpoint"


class Judge:
    """Collects the places at which a training was taken up again, and holds the signs against each."""

    def __init__(self, facts: Facts, joined: logs.Joined, named: str | None) -> None:
        self._facts, self._joined, self._named = facts, joined, named
        self._even = seams.smooth(named, facts.kind)
        self._rows = joined.rows
        self._trained = [row for row in joined.rows if row.trains]
        self._rates = seams.Rates(self._trained)
        self._gaps = logs.gaps(self._trained, facts.state.get("logging_steps"))
        self._evidence: dict[int, list[str]] = {}
        self._doubled: set[int] = set()
        self._reshaped: set[int] = set()
        self._again: dict[int, tuple[float, float]] = {}
        self.notes: list[Note] = []
        newest = max((point.step or 0 for point in facts.stored), default=0)
        tolerance = SKIPPED + newest // 1000 if facts.scaled else 0
        points = [] if _ambiguous(facts.stored) else facts.stored
        self._optimizer = seams.restarts(
            [(point.path, point.step, point.optimizer_step) for point in points], tolerance, facts.counts
        )
        self._scheduler = seams.restarts(
            [(point.path, point.step, point.scheduler_step) for point in points], tolerance, facts.counts
        )

    def found(self) -> list[Seam]:
        """Return all seams in the order of their steps."""
        self._from_logs()
        self._from_starts()
        for restart in (*self._optimizer, *self._scheduler):
            self._evidence.setdefault(restart.step, [])
        resumed = set(self._evidence)
        jumped = self._jumps()
        for point in self._facts.stored[:-1]:
            step = point.step
            if step is not None and step not in self._evidence and self._begins_anew(step):
                self._evidence[step] = []
        steps = sorted(self._evidence)
        if len(steps) > MOST_SEAMS:
            self.notes.append(Note("seams", f"{len(steps):,} seams; only the first {MOST_SEAMS} are judged"))
        return [self._seam(step, jumped.get(step), step in resumed) for step in steps[:MOST_SEAMS]]

    def _begins_anew(self, step: int) -> bool:
        if self._even is False or self._counted_on(step) or not seams.repeats(self._rates, step):
            return False
        return self._even is True or seams.begins_low(self._rates, step)

    # Evidence

    def _add(self, step: int, why: str) -> None:
        told = self._evidence.setdefault(step, [])
        if why not in told:
            told.append(why)

    def _anchor(self, to: int) -> int:
        """Return the last step before ``to`` at which a checkpoint was, or must have been: a resume begins at one."""
        known = [point.step for point in self._facts.stored if point.step is not None and point.step < to]
        every = whole(self._facts.state.get("save_steps"))
        if every is not None and every > 0 and (to - 1) // every:
            known.append((to - 1) // every * every)
        logged = [row.step for row in self._trained if row.step < to]
        return max(known, default=logged[-1] if logged else 0)

    def _from_logs(self) -> None:
        for back in self._joined.backs:
            step = self._anchor(back.to)
            if step == 0:
                self.notes.append(Note("started-again", f"{back.log.path} begins again at step {back.to:,}", back.to))
                continue
            if back.log.appended or back.last == back.log.step:
                self._add(step, f"{back.log.path} goes back from step {back.last:,} to {back.to:,}")
            else:
                self._add(step, f"{back.log.path} tells steps {back.to:,} to {back.last:,} twice")
                self._doubled.add(step)
            if back.was is not None and back.now is not None:
                self._again[step] = (back.was, back.now)
        for step, path in self._joined.ends:
            self._add(step, f"a training ended here and {path} goes on")
        for to, path in self._joined.restarts:
            step = self._anchor(to)
            if step:
                self._add(step, f"the clock of {path} begins again")

    def _from_starts(self) -> None:
        before: Start | None = None
        for start in self._facts.starts:
            self._resumed_from(before, start)
            if before is not None and before.step < start.step:
                told = seams.changes(before.arguments, start.arguments)
                if told:
                    self._add(before.step, f"other training arguments: {', '.join(told[:3])}")
                if before.world and start.world and before.world != start.world:
                    self._add(before.step, f"{before.world} processes, then {start.world}")
                if before.version and start.version and before.version != start.version:
                    self._add(before.step, f"transformers {before.version}, then {start.version}")
                if told or before.total != start.total:
                    self._reshaped.add(before.step)
                if before.total and start.total and before.total != start.total:
                    self._add(before.step, f"{before.total:,} steps planned, then {start.total:,}")
            before = start

    def _resumed_from(self, before: Start | None, start: Start) -> None:
        value = start.arguments.get("resume_from_checkpoint")
        if value in (None, False, "", "False", "false") or (before and before.arguments.get(_RESUME) == value):
            return
        match = _NUMBERED.search(value.rstrip("/")) if isinstance(value, str) else None
        step = int(match[1]) if match else before.step if before else None
        if step is not None and 0 < step < start.step:
            self._add(step, f"training arguments of {seams.place(start.path)}: {_RESUME} {value}"[:160])
        else:
            message = f"{seams.place(start.path)} was written by a training resumed from {value}"[:160]
            self.notes.append(Note("resumed-from", message, start.step))

    def _jumps(self) -> dict[int, seams.Jump]:
        """Give every jump of the rate to the seam that explains it, or to one of its own."""
        found: dict[int, seams.Jump] = {}
        if self._even is False:
            return found
        previous = 0
        for jump in seams.jumps(self._rates.points):
            near = [step for step in self._evidence if jump.before <= step < jump.after]
            near = near or [step for step in self._evidence if self._before(jump.before) <= step < jump.before]
            counted = self._counted_on(jump.before)
            if near and not (counted and max(near) not in self._reshaped):
                found.setdefault(max(near), jump)
            elif jump.before == previous:  # the way back of the one before
                pass
            elif counted:
                pass  # nothing was restarted: the schedule does that by itself
            else:
                step = self._anchor(jump.after)
                step = step if step >= self._before(jump.before) else jump.before
                if self._even or self._begins_anew(step):
                    self._evidence[step] = []
                    found[step] = jump
                else:
                    text = f"the learning rate jumps from {jump.old:.4g} to {jump.new:.4g} after step {jump.before:,}"
                    self.notes.append(Note("rate-jumps", f"{text}; the schedule is not known", jump.before))
            previous = jump.after
        return found

    def _before(self, step: int) -> int:
        """Return the logged step before ``step``."""
        known, _ = self._rates.around(step - 1)
        return known[-1][0] if known else 0

    def _counted_on(self, step: int) -> bool:
        """Return whether a later checkpoint shows that the scheduler was never restarted: then a jump is its own."""
        later = [p for p in self._facts.stored if p.scheduler_step is not None and (p.step or 0) > step]
        return bool(later) and self._facts.counts and not self._scheduler

    # Judgement

    def _seam(self, step: int, jump: seams.Jump | None, resumed: bool) -> Seam:
        scheduler = next((each for each in self._scheduler if each.step == step), None)
        optimizer = next((each for each in self._optimizer if each.step == step), None)
        later = self._trained[-1].step if self._trained else 0
        after = next((row.step for row in self._trained if row.step > step), None)
        gap = next((gap for gap in self._gaps if gap.before <= step < gap.after and not gap.lost), None)
        usual = logs.spacing(self._trained, self._facts.state.get("logging_steps"))
        signs: list[Sign] = []
        if self._trained:
            lost = (gap.before, gap.after) if gap is not None and after is not None and later > step else None
            signs.append(seams.loss_sign(self._trained, step, self._accumulation(step), self._again.get(step)))
            counted = self._counted_on(step)
            signs.append(seams.rate_sign(self._rates, step, jump, scheduler, self._even, self._schedule, counted))
            signs.append(seams.step_sign(self._trained, step, lost, step in self._doubled, usual))
        elif scheduler is not None:
            signs.append(seams.rate_sign(self._rates, step, None, scheduler, self._even, self._schedule))
        signs.append(seams.optimizer_sign(self._facts.stored, step, optimizer))
        at = next((p.path for p in self._facts.stored if p.step == step and p.path != "."), None)
        return Seam(step, at, resumed, tuple(self._evidence[step]), tuple(signs))

    @property
    def _schedule(self) -> str | None:
        return f"a {self._named}" if self._named and self._facts.kind in (None, "LambdaLR") else self._facts.kind

    def _accumulation(self, step: int) -> int | None:
        """Return the accumulation where the library changed at ``step``: versions log losses on different scales."""
        before = [start for start in self._facts.starts if start.step <= step]
        after = [start for start in self._facts.starts if start.step > step]
        if not before or not after or before[-1].version == after[0].version:
            return None
        return whole(after[0].arguments.get("gradient_accumulation_steps"))

    # Notes

    def remarks(self, found: list[Seam]) -> Iterator[Note]:
        """Yield what is wrong or odd outside of the seams."""
        covered = {seam.step for seam in found}
        yield from self._gap_notes(covered)
        yield from self._number_notes()
        for each in self._joined.contradictions[:1]:
            more = len(self._joined.contradictions) - 1
            tail = f", and {count(more, 'more value')}" if more else ""
            yield Note(
                "contradiction",
                f"{each.measure} of step {each.step:,} is {each.value:.6g} in {each.winner} and {each.other:.6g} in "
                f"{each.loser}{tail}; the newer one is shown",
                each.step,
            )
        for path, number in self._joined.repeated.items():
            yield Note("repeated", f"{path} tells {count(number, 'entry', 'entries')} twice, word for word")
        for path, number in self._joined.odd.items():
            yield Note("odd-entries", f"{path}: {count(number, 'entry', 'entries')} without a step left out")
        yield from self._ends()
        if self._trained:
            for point in self._facts.stored[:-1]:
                step = point.step
                if step is not None and step not in covered:
                    sign = seams.loss_sign(self._trained, step, self._accumulation(step), None)
                    if sign.state is State.BROKEN and sign.text.startswith("jumps"):
                        yield Note(
                            "loss-jumps", f"after step {step:,} ({seams.place(point.path)}) the loss {sign.text}", step
                        )

    def _gap_notes(self, covered: set[int]) -> Iterator[Note]:
        for gap in self._gaps:
            if any(gap.before <= step < gap.after for step in covered) and not gap.lost:
                continue
            where = f"nothing is logged between steps {gap.before:,} and {gap.after:,}"
            why = ": the log of that time is not here" if gap.lost else ""
            yield Note("gap", where + why, gap.before, not gap.lost)
        usual = logs.spacing(self._trained, self._facts.state.get("logging_steps"))
        if len(self._trained) > 1 and self._trained[0].step > 1.5 * usual:
            first = self._trained[0].step
            yield Note("begins-late", f"the log begins at step {first:,}: what was before is not here", first)

    def _number_notes(self) -> Iterator[Note]:
        bad = [row for row in self._trained if row.loss is not None and not isfinite(row.loss)]
        if bad:
            ends = self._trained[-1].loss is not None and not isfinite(self._trained[-1].loss)
            steps = ", ".join(f"{row.step:,}" for row in bad[:6]) + (" ..." if len(bad) > 6 else "")
            tail = ", up to the end" if ends else ""
            yield Note(
                "nan-loss", f"the loss is no number at {count(len(bad), 'step')} ({steps}){tail}", bad[0].step, ends
            )
        last = None
        for row in self._trained:
            if row.loss == 0 and last is not None and last > 0.1:
                norm = row.values.get("grad_norm")
                dead = norm is not None and not isfinite(norm)
                what = ": the Trainer logs a NaN as 0, and the gradient is no number" if dead else ""
                yield Note(
                    "zero-loss",
                    f"the loss falls from {last:.4g} to exactly 0 at step {row.step:,}{what}",
                    row.step,
                    dead,
                )
                break
            last = row.loss if row.loss is not None else last

    def _ends(self) -> Iterator[Note]:
        saved = max((point.step for point in self._facts.stored if point.step is not None), default=None)
        stated = [log.step for log in self._facts.logs if not log.appended]
        if saved is None or not self._trained or not any(log.appended for log in self._facts.logs):
            return
        last = self._trained[-1].step
        if last > max([saved, *stated]):
            yield Note(
                "unsaved", f"steps after {saved:,} are logged and in no checkpoint: a resume does them again", last
            )


def _ambiguous(stored: list[Stored]) -> bool:
    """Return whether the order of the checkpoints is not known: some have no step, or two have the same."""
    steps = [point.step for point in stored]
    return None in steps or len(set(steps)) != len(steps)
