"""What a search shows while it goes on."""

from __future__ import annotations

from eagleeye_hf.search.candidate import Candidate, rank_candidates
from eagleeye_hf.telling import progress_bar


class SearchBar:
    """How many candidates are scored, or seconds over where they bound the search; and the best so far.

    Args:
        total: candidates; None where only minutes end the search.
        reports: what is reported beside the loss.
    """

    def __init__(self, total: int | None, minutes: float | None, reports: str, shown: bool) -> None:
        self.reports, self.by_time = reports, minutes is not None and total is None
        self._best: list[Candidate] = []
        self._bar = progress_bar(
            total=round(60 * minutes) if self.by_time and minutes else total,
            desc="search",
            unit="s" if self.by_time else "candidate",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} s{postfix}" if self.by_time else None,
            disable=not shown,
            delay=2,
        )

    def show(self, stage: int, changed: Candidate, elapsed: float) -> None:
        """A candidate was scored at a stage, so many seconds after the start."""
        if self._bar.disable:
            return
        if self.by_time:
            self._bar.update(min(int(elapsed), self._bar.total) - self._bar.n)
        elif stage == 0:
            self._bar.update()
        best = rank_candidates([*self._best, changed])[:1] if changed.budget == 0 else self._best
        if best != self._best:
            self._best = best
            score = best[0].score
            told = f"best loss {score.loss:.3f}, {self.reports} {score.reported:.2%}" if score else ""
            self._bar.set_postfix_str(told, refresh=False)

    def close(self) -> None:
        self._bar.close()
