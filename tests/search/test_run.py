"""The search with scores that are functions of the widths; the same, killed, resumed and shared out."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

from eagleeye_hf import EagleEyeError, SearchConfig, Strategy, run_search, trace_model
from eagleeye_hf.channels.cost import Cost
from eagleeye_hf.evaluation.objective import Score
from eagleeye_hf.evaluation.preparation import Preparation
from eagleeye_hf.runtimes.latency import Latency
from eagleeye_hf.search.candidate import Candidate, Scored
from eagleeye_hf.search.generations import Search
from eagleeye_hf.search.pool import _use_device
from eagleeye_hf.search.reading import read_journal
from eagleeye_hf.search.scorer import FunctionScorer
from eagleeye_hf.search.stages import STEPS, interleave, list_stages
from eagleeye_hf.strategies.budget import Bounds
from eagleeye_hf.strategies.space import Space
from eagleeye_hf.strategies.strategy import aligned_divisors
from tests.helpers import make_model
from tests.runtimes.predictors import PLACE, per_channel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def graph():
    return trace_model(timm.create_model("resnet20_cifar"))


def by_sum(strategy: Strategy, fraction: float = 1.0) -> Score:
    """Noisy on a part of the images, exact on all of them."""
    noise = 0 if fraction == 1 else np.random.default_rng(list(strategy.widths)).normal(0, 3)
    return Score(loss=1000 - sum(strategy.widths) + noise, reported=0.5, num_images=round(80 * fraction))


BY_SUM = FunctionScorer(by_sum)

CONFIG = SearchConfig(candidates=8, method="random", stages=(1.0,), divisor=1)
STAGED = SearchConfig(candidates=40, generation=10, stages=(0.125, 1.0), divisor=1)


def essence(result):
    return [(c.index, c.budget, c.strategy, c.origin, c.score, c.status) for c in result.candidates]


def test_the_lowest_loss_wins(graph):
    result = run_search(BY_SUM, graph, CONFIG)
    assert sum(result.best.strategy.widths) == max(sum(c.strategy.widths) for c in result.candidates)
    assert [c.index for c in result.candidates] == list(range(8))
    assert result.candidates[0].origin == "uniform"


def test_stages_give_the_better_part_all_images(graph):
    result = run_search(BY_SUM, graph, STAGED)
    full = [c for c in result.candidates if c.score.num_images == 80]
    assert len(full) == 8  # a tenth would be four; in multiples of eight
    assert all(c.score.num_images == 10 for c in result.candidates if c not in full)
    assert result.best in full
    assert result.best.score.loss == 1000 - sum(result.best.strategy.widths)
    first = {c.index: by_sum(c.strategy, 0.125).loss for c in result.candidates}
    assert {c.index for c in full} == set(sorted(first, key=first.get)[:8])


def test_three_stages_sift_ever_fewer(graph):
    result = run_search(BY_SUM, graph, SearchConfig(candidates=200, generation=50))
    images = [c.score.num_images for c in result.candidates]
    assert {num: images.count(num) for num in set(images)} == {5: 180, 20: 12, 80: 8}
    assert result.best.score.num_images == 80


def test_a_stage_goes_on_where_the_one_before_ended(graph):
    """What a scorer is told of the stage before is the score of that stage."""
    seen = []

    class GoesOn(FunctionScorer):
        def __call__(self, strategy, fraction=1.0, before=None, matched=False):
            if before is not None:
                assert before.score == by_sum(strategy, before.fraction)
            seen.append((fraction, before and before.fraction))
            return by_sum(strategy, fraction)

    run_search(GoesOn(by_sum), graph, SearchConfig(candidates=100))
    counts = {pair: seen.count(pair) for pair in set(seen)}
    assert counts == {(0.0625, None): 100, (0.25, 0.0625): 14, (1.0, 0.25): 8}, "four were caught up with"


def test_those_of_the_last_stage_have_been_at_the_one_before(graph):
    """What is proposed late, and looks best, comes in no wave any more; luck on few images is not enough."""
    late = run_search(BY_SUM, graph, SearchConfig(candidates=100)).candidates[95:]
    seen = []

    class Late(FunctionScorer):
        def __call__(self, strategy, fraction=1.0, before=None, matched=False):
            seen.append((strategy, fraction))
            lucky = fraction < 0.1 and any(strategy == candidate.strategy for candidate in late)
            return replace(by_sum(strategy, fraction), loss=-1.0 if lucky else by_sum(strategy).loss)

    result = run_search(Late(by_sum), graph, replace(SearchConfig(candidates=100), method="random"))
    last = {strategy for strategy, fraction in seen if fraction == 1}
    before = {strategy for strategy, fraction in seen if fraction == 0.25}
    assert len(last) == 8
    assert last <= before
    assert result.best.score.loss == min(by_sum(strategy).loss for strategy in before)


def test_minutes_count_what_scoring_took_and_not_what_came_before(graph):
    """A tenth of a second a candidate after 20 s of preparation: half an hour is long."""
    candidate = Candidate(index=0, budget=0, strategy=Strategy(graph.widths), origin="random", cost=Cost(1, 1))

    def is_over(num: int, minutes: float) -> bool:
        lines = [
            Scored(
                candidate=replace(candidate, index=n),
                stage=0,
                score=None,
                status="ok",
                seconds=0.1,
                elapsed=20 + n / 10,
            )
            for n in range(num)
        ]
        stages = list_stages(SearchConfig().stages, True)
        config = SearchConfig(candidates=None, minutes=minutes)
        return Search._is_over(
            SimpleNamespace(config=config, stages=stages, num_waves=2, _known=lambda generation: lines), 0
        )

    assert not is_over(32, 30)
    assert is_over(32, 0.3)
    assert is_over(20_000, 30)


def test_a_generation_is_made_of_what_is_known_two_generations_before(graph):
    """However long a candidate of the generation between takes, and whatever it scores."""

    def run(odd):
        def score(strategy, fraction):
            found = by_sum(strategy)
            return replace(found, loss=odd) if found == by_sum(late) else found

        return run_search(
            FunctionScorer(score), graph, replace(CONFIG, method="evolution", candidates=40, generation=8)
        )

    late = run_search(BY_SUM, graph, replace(CONFIG, candidates=16)).candidates[12].strategy
    one, other = run(1.0), run(2000.0)
    assert [c.strategy for c in one.candidates[:24]] == [c.strategy for c in other.candidates[:24]]
    assert [c.strategy for c in one.candidates[24:32]] != [c.strategy for c in other.candidates[24:32]]


def test_evolution_finds_more_than_chance(graph):
    random = run_search(BY_SUM, graph, replace(STAGED, method="random", candidates=120))
    evolved = run_search(BY_SUM, graph, replace(STAGED, candidates=120))
    assert evolved.best.origin == "evolution"
    assert evolved.best.score.loss < random.best.score.loss
    assert len({c.strategy.widths for c in evolved.candidates}) == 120
    assert [c.strategy for c in evolved.candidates[:20]] == [c.strategy for c in random.candidates[:20]]


class Trained(FunctionScorer):
    """What is trained first scores the other way round."""

    def prepare(self, examples, draws=None):
        return Preparation(matches=True)

    def __call__(self, strategy, fraction=1.0, before=None, matched=False):
        found = by_sum(strategy, fraction)
        return replace(found, loss=10_000 - found.loss, matched=matched) if matched else found


@pytest.mark.parametrize("stages", [(0.25, 1.0), (1.0,)])
def test_leaders_are_scored_once_more_after_a_little_training(graph, tmp_path, stages):
    config = replace(CONFIG, candidates=40, stages=stages)
    result = run_search(Trained(by_sum), graph, config, output=tmp_path)
    plain = run_search(BY_SUM, graph, config)
    matched = [candidate for candidate in result.candidates if candidate.score.matched]
    longer = [candidate for candidate in matched if candidate.score.matched == max(STEPS)]
    assert (len(longer), len(matched)) == (8, 24)
    assert {c.index for c in plain.leaders[:8]} <= {c.index for c in matched}
    by_loss = sorted(matched, key=lambda candidate: candidate.score.loss)
    assert {c.index for c in longer} == {c.index for c in by_loss[:8]}
    assert result.best == min(longer, key=lambda candidate: sum(candidate.strategy.widths))
    assert result.leaders[:24] == [*sorted(longer, key=lambda c: c.score.loss), *by_loss[8:]]
    assert read_journal(tmp_path).leaders()[0].strategy == result.best.strategy
    assert run_search(Trained(by_sum), graph, config, output=tmp_path).best == result.best
    without = run_search(Trained(by_sum), graph, replace(config, matched=False))
    assert essence(without) == essence(plain)


def test_a_journal_from_before_is_read(graph, tmp_path):
    """There `matched` told whether, and not for how many steps."""
    run_search(BY_SUM, graph, CONFIG, output=tmp_path)
    found = read_journal(tmp_path).leaders()
    assert Score.from_dict({"loss": 1.0, "reported": 0.5, "num_images": 8, "matched": True}).matched == 1
    assert {c.score.matched for c in found} == {0}


def test_one_candidate_is_not_trained_to_choose_it(graph):
    result = run_search(Trained(by_sum), graph, replace(CONFIG, method="uniform"))
    assert not result.best.score.matched


def test_networks_that_are_thin_or_short_or_see_small_images_take_turns():
    """Losses before training favour the smallest images here; at the last stage are all kinds."""
    graph = trace_model(make_model("resnet56_cifar"), image_sizes=(16, 20, 24, 28))

    class Biased(Trained):
        def __call__(self, strategy, fraction=1.0, before=None, matched=False):
            return Score(loss=strategy.image_size or 32, reported=0.0, num_images=1, matched=matched)

    config = replace(CONFIG, candidates=60, stages=(0.25, 1.0), dimensions=("width", "depth", "size"), macs=0.4)
    result = run_search(Biased(by_sum), graph, config)
    matched = [candidate.strategy for candidate in result.candidates if candidate.score.matched == max(STEPS)]
    kinds = Space(Bounds(graph, config.budgets[0]), dimensions=config.dimensions).kinds(matched)
    assert len(kinds) == 8
    assert set(kinds) == {"width", "depth", "size", "mostly width", "mostly depth", "mostly size"}


def test_kinds_take_turns_in_the_order_of_their_best():
    kinds = ["x", "x", "x", "y", "x", "z", "y"]
    assert interleave("abcdefg", kinds) == ["a", "d", "f", "b", "g", "c", "e"]


def test_baselines(graph):
    class WithUnits(FunctionScorer):
        def unit_scores(self, accelerator=None):
            return [np.arange(len(group.units), dtype=float) for group in graph.prunable]

    result = run_search(WithUnits(by_sum), graph, replace(CONFIG, method="global"))
    assert [c.origin for c in result.candidates] == ["uniform", "global"]
    assert len(run_search(BY_SUM, graph, replace(CONFIG, method="uniform")).candidates) == 1
    with pytest.raises(EagleEyeError, match="needs a score that has `unit_scores`"):
        run_search(BY_SUM, graph, replace(CONFIG, method="global"))


def test_several_budgets_in_one_search(graph):
    result = run_search(BY_SUM, graph, replace(STAGED, macs=[0.75, 0.5, 0.25], generation=30))
    assert len(result.budgets) == 3
    full = result.candidates[0].cost.macs / 0.75
    for number, share in enumerate((0.75, 0.5, 0.25)):
        own = [c for c in result.candidates if c.budget == number]
        assert len(own) == 40
        assert result.best_of(number).cost.macs / full == pytest.approx(share, abs=0.03)
    alone = run_search(BY_SUM, graph, replace(STAGED, macs=0.5, generation=10))
    assert [c.strategy for c in alone.candidates] == [c.strategy for c in result.candidates if c.budget == 1]


def test_minutes_end_a_search(graph):
    def slow(strategy, fraction):
        time.sleep(0.01)
        return by_sum(strategy)

    result = run_search(FunctionScorer(slow), graph, replace(CONFIG, candidates=None, minutes=0.005, generation=5))
    assert len(result.candidates) % 5 == 0
    assert 5 <= len(result.candidates) <= 35


def test_a_killed_search_goes_on_where_it_was(graph, tmp_path):
    scored = []

    def dies(strategy, fraction):
        if len(scored) == 23:
            raise KeyboardInterrupt
        scored.append(strategy)
        return by_sum(strategy, fraction)

    with pytest.raises(KeyboardInterrupt):
        run_search(FunctionScorer(dies), graph, STAGED, output=tmp_path)
    journal = tmp_path / "search.jsonl"
    with journal.open("a") as file:
        file.write('{"index": 3, "orig')  # torn by the kill
    again = []
    counted = FunctionScorer(lambda strategy, fraction: again.append(strategy) or by_sum(strategy, fraction))
    result = run_search(counted, graph, STAGED, output=tmp_path)
    expected = run_search(BY_SUM, graph, STAGED)
    assert essence(result) == essence(expected)
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(scored) + len(again) == len(rows) - 1
    keys = {"index", "origin", "strategy", "macs", "params", "score", "seconds", "status"}
    assert all(keys <= set(row) for row in rows[1:])
    assert len({(row["index"], row["stage"]) for row in rows[1:]}) == len(rows) - 1
    record = read_journal(tmp_path)
    assert essence(record) == essence(expected)


def test_another_configuration_is_refused_with_the_difference(graph, tmp_path):
    run_search(BY_SUM, graph, CONFIG, output=tmp_path, fingerprint={"weights": "a"})
    head = json.loads((tmp_path / "search.jsonl").read_text().splitlines()[0])
    assert len(head["fingerprint"]) == 16
    with pytest.raises(EagleEyeError, match="seed: 0 then, 5 now"):
        run_search(BY_SUM, graph, CONFIG, seed=5, output=tmp_path, fingerprint={"weights": "a"})
    with pytest.raises(EagleEyeError, match="weights: 'a' then, 'b' now"):
        run_search(BY_SUM, graph, CONFIG, output=tmp_path, fingerprint={"weights": "b"})
    for text in ("not json\n", "not json", '{"index": 0}\n'):
        (tmp_path / "search.jsonl").write_text(text)
        with pytest.raises(EagleEyeError, match="is not a search journal"):
            run_search(BY_SUM, graph, CONFIG, output=tmp_path)


def test_a_loss_that_is_not_finite_is_recorded_and_tried_again(graph, tmp_path):
    calls = []

    def sometimes(strategy, fraction):
        calls.append(strategy)
        if len(calls) == 2:
            raise FloatingPointError("statistics are not finite")
        return Score(loss=float("nan"), reported=0.0, num_images=8) if len(calls) == 3 else by_sum(strategy)

    def run(function):
        return run_search(FunctionScorer(function), graph, CONFIG, output=tmp_path)

    result = run(sometimes)
    assert [c.index for c in result.candidates if not c.scored] == [1, 2]
    assert {c.status for c in result.candidates if not c.scored} == {"the score is not a finite number"}
    assert len(result.leaders) == 6
    failing = {c.strategy for c in result.candidates[1:3]}
    nan = Score(loss=float("nan"), reported=0.0, num_images=8)
    again = []
    same = run(lambda strategy, fraction: again.append(strategy) or nan)
    assert set(again) == failing
    assert essence(same) == essence(result)
    assert essence(run(by_sum)) == essence(run_search(BY_SUM, graph, CONFIG))
    rows = [json.loads(line) for line in (tmp_path / "search.jsonl").read_text().splitlines()[1:]]
    assert len(rows) == 8 + 2 + 2
    assert essence(read_journal(tmp_path)) == essence(run_search(BY_SUM, graph, CONFIG))

    lost = run_search(FunctionScorer(lambda strategy, fraction: nan), graph, CONFIG)
    assert "8 of 8 candidates could not be scored" in lost.notes[0]
    with pytest.raises(EagleEyeError, match=r"no candidate could be scored; the first one failed with: .*finite"):
        _ = lost.best


class Timed(FunctionScorer):
    """Measurements of stems of an odd width are half as long again."""

    def prepare(self, examples, draws):
        assert draws.max_ratio == CONFIG.max_ratio
        return Preparation(latency=per_channel(self.graph))

    def measure_latency(self, strategies):
        taken = [7.5 if s.widths[0] % 2 else 5.0 for s in strategies]
        return [Latency(milliseconds=ms, full_ms=10.0, place=PLACE) for ms in taken]


@pytest.mark.parametrize("bound", [0.5, "5ms"])
def test_leaders_must_hold_their_latency_when_measured(graph, tmp_path, bound):
    config = replace(CONFIG, latency=bound, candidates=30)
    scorer = Timed(by_sum)
    scorer.graph = graph
    result = run_search(scorer, graph, config, output=tmp_path)
    assert result.best.latency.milliseconds == 5.0
    assert result.best.strategy.widths[0] % 2 == 0
    slow = [c for c in result.candidates if c.milliseconds == 7.5]
    assert slow
    assert all(
        c.beyond == pytest.approx(0.5) and c not in result.leaders[: len(result.leaders) - len(slow)] for c in slow
    )
    assert not result.notes
    again = run_search(scorer, graph, config, output=tmp_path)
    assert again.best == result.best
    record = read_journal(tmp_path)
    assert record.leaders()[0].latency == result.best.latency
    assert record.budget_name(0) == f"latency={bound}"


def test_a_search_for_milliseconds_at_several_image_sizes_is_read_back(tmp_path):
    graph = trace_model(make_model("resnet20_cifar"), image_sizes=(16, 24))

    class Sized(Timed):
        def prepare(self, examples, draws):
            return Preparation(latency=per_channel(graph))

        def measure_latency(self, strategies):
            return [Latency(milliseconds=5.0, full_ms=10.0, place=PLACE) for _ in strategies]

    config = replace(CONFIG, latency=0.5, candidates=12, dimensions=("width", "size"))
    result = run_search(Sized(by_sum), graph, config, output=tmp_path)
    assert {candidate.strategy.image_size for candidate in result.candidates} > {None}
    assert essence(run_search(Sized(by_sum), graph, config, output=tmp_path)) == essence(result)
    assert read_journal(tmp_path).leaders()[0].strategy == result.best.strategy


@pytest.mark.parametrize("stages", [(0.25, 0.5, 1.0), (1.0,)])
def test_what_is_measured_beyond_the_bound_is_not_trained(graph, tmp_path, stages):
    class Both(Timed, Trained):
        def prepare(self, examples, draws):
            return Preparation(latency=per_channel(graph), matches=True)

    config = replace(CONFIG, latency=0.5, candidates=60, stages=stages, promote=0.1)
    result = run_search(Both(by_sum), graph, config, output=tmp_path)
    longer = [candidate for candidate in result.candidates if candidate.score.matched == max(STEPS)]
    unbound = run_search(Trained(by_sum), graph, replace(config, latency=None, macs=0.5))
    assert len(longer) == sum(candidate.score.matched == max(STEPS) for candidate in unbound.candidates) == 8
    assert all(candidate.latency.milliseconds == 5.0 for candidate in longer)
    assert result.best in longer
    slow = [candidate for candidate in result.candidates if candidate.beyond]
    assert slow, "those that were scored best were measured first"
    lines = (tmp_path / "search.jsonl").read_text().splitlines(keepends=True)
    for killed in (len(lines) // 2, len(lines) - len(longer) - 4, len(lines) - 3):
        (tmp_path / "search.jsonl").write_text("".join(lines[:killed]))
        assert essence(run_search(Both(by_sum), graph, config, output=tmp_path)) == essence(result)


def test_where_no_candidate_keeps_to_the_bound_the_nearest_is_chosen_and_a_note_says_so(graph, tmp_path):
    class Slow(Timed):
        def measure_latency(self, strategies):
            taken = [5.15 if s.widths[0] % 2 else 5.3 for s in strategies]
            return [Latency(milliseconds=ms, full_ms=10.0, place=PLACE) for ms in taken]

    scorer = Slow(by_sum)
    scorer.graph = graph
    result = run_search(scorer, graph, replace(CONFIG, latency=0.5, candidates=12), output=tmp_path)
    assert result.best.latency.milliseconds == 5.15
    assert (
        "no measured candidate keeps to `latency=0.5`: the nearest, which is chosen, takes 5.15 ms, 3.0% more"
        in (result.notes[-1])
    )
    assert read_journal(tmp_path).leaders()[0].strategy == result.best.strategy


def test_milliseconds_are_fitted_to_the_widths_that_are_drawn(graph):
    """Where the alignment leaves too few strategies, and is halved, the model of milliseconds is fitted again."""
    fitted = []

    class Recorded(Timed):
        def measure_alignment(self):
            return 16

        def prepare(self, examples, draws):
            fitted.append(draws.divisor)
            return super().prepare(examples, draws)

        def measure_latency(self, strategies):
            return [Latency(milliseconds=5.0, full_ms=10.0, place=PLACE) for _ in strategies]

    scorer = Recorded(by_sum)
    scorer.graph = graph
    result = run_search(scorer, graph, replace(CONFIG, latency=0.5, divisor="auto", tolerance=0.0005))
    assert fitted[0] == aligned_divisors(graph, 16)
    assert len(fitted) > 1
    assert max(fitted[-1]) < 16
    multiples = np.array(fitted[-1])
    kept = np.array(
        [[w for w, g in zip(c.strategy.widths, graph.groups, strict=True) if g.prunable] for c in result.candidates]
    )
    channels = np.array([g.channels for g in graph.prunable])
    assert np.all((kept % multiples == 0) | (kept == channels))


def test_widths_keep_to_the_alignment_where_that_leaves_enough_strategies(graph, tmp_path):
    class Aligned(FunctionScorer):
        def measure_alignment(self):
            return 16

    result = run_search(Aligned(by_sum), graph, replace(CONFIG, divisor="auto", tolerance=0.03), output=tmp_path)
    alignment = read_journal(tmp_path).prepared.alignment
    assert alignment in (4, 8, 16)
    for candidate in result.candidates:
        for width, group in zip(candidate.strategy.widths, graph.groups, strict=True):
            assert width == group.channels or width % min(alignment, group.channels // 2) == 0
    tight = run_search(Aligned(by_sum), graph, replace(CONFIG, divisor="auto", tolerance=0.0002))
    assert any(width % 4 for c in tight.candidates for width in c.strategy.widths)


def test_a_scorer_that_lacks_something_is_refused_by_name(graph):
    with pytest.raises(
        EagleEyeError,
        match=r"`score` \(function\) lacks adopt, measure_alignment, measure_latency, .* `FunctionScorer`",
    ):
        run_search(by_sum, graph, CONFIG)
    with pytest.raises(EagleEyeError, match="needs a scorer that measures them"):
        run_search(BY_SUM, graph, replace(CONFIG, latency=0.5))


SCRIPT = """
import os, sys, torch, timm
from pathlib import Path
from eagleeye_hf import AdaptiveBNScore, SearchConfig, run_search, trace_model
from dataclasses import replace
from eagleeye_hf.runs.arguments import leave_processes
from eagleeye_hf.runtimes.latency import Latency
from eagleeye_hf.search import stages
from tests.runtimes.predictors import PLACE, per_channel
torch.manual_seed(0)
stages.STEPS = (1, 2)
model = timm.create_model("resnet20_cifar").eval()
graph = trace_model(model)
batches = [(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))) for _ in range(4)]
score = AdaptiveBNScore(model, graph, batches[:2], batches[2:])
if os.environ.get("RANK", "0") != "0":
    score.builder.importance._score_units = None  # the main process ranks for all
config = SearchConfig(macs=[0.6, 0.4], candidates=9, generation=8, stages=(0.5, 1.0), promote=0.4)
run_search(score, graph, config, output=Path(sys.argv[1]))

class Timed(AdaptiveBNScore):
    def prepare(self, examples, draws=None):
        return replace(super().prepare(examples), latency=per_channel(graph))
    def adopt(self, prepared):
        super().adopt(replace(prepared, latency=None))
    def measure_latency(self, strategies):
        return [Latency(milliseconds=7.5 if s.widths[0] % 2 else 5.0, full_ms=10.0, place=PLACE) for s in strategies]

score = Timed(model, graph, batches[:2], batches[2:])
config = SearchConfig(latency=0.5, candidates=12, stages=(0.5, 1.0), divisor=1)
run_search(score, graph, config, output=Path(sys.argv[1]) / "timed")
leave_processes()
"""


def start(folder: Path, processes: int, threads: int) -> subprocess.Popen:
    script = folder.parent / "search.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(folder)]
    if processes > 1:
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
        launch += ["--dynamo_backend", "no", "--main_process_port", "0", "--num_processes", str(processes)]
        command[1:1] = launch
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def finish(process: subprocess.Popen, folder: Path) -> list[dict]:
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    return [*read_rows(folder), *read_rows(folder / "timed")]


def read_rows(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()[1:]]
    timeless = [{**row, "seconds": 0, "elapsed": 0, "checksum": ""} for row in rows if row["kind"] == "score"]
    return sorted(timeless, key=lambda row: (row["index"], row["stage"]))


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> list[dict]:
    """What one process finds that scores in two threads."""
    folder = tmp_path_factory.mktemp("one") / "run"
    return finish(start(folder, 1, threads=2), folder)


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_find_the_same_to_the_bit(one, tmp_path, processes):
    assert len([row for row in one if row["stage"] == 0]) == 18 + 12
    assert [sum(row["score"]["matched"] == steps for row in one) for steps in (1, 2)] == [18 + 12, 16 + 6]
    assert any(row["origin"] == "evolution" for row in one)
    assert finish(start(tmp_path / "run", processes, threads=1), tmp_path / "run") == one


@pytest.mark.slow
def test_a_search_that_is_killed_finds_the_same_to_the_bit(one, tmp_path):
    folder = tmp_path / "killed"
    process = start(folder, 1, threads=1)
    journal = folder / "search.jsonl"
    while not (journal.exists() and len(journal.read_text().splitlines()) > 8):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 8 < len(journal.read_text().splitlines()) < 1 + len(one)
    assert finish(start(folder, 1, threads=1), folder) == one


def test_threads_use_the_device_that_has_a_number(monkeypatch):
    """`cuda` alone, as accelerate names it in one process, is no device that can be set."""
    used = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    for name in ("cpu", "cpu:0", "cuda", "cuda:1"):
        _use_device(torch.device(name))
    assert used == [torch.device("cuda:1")]
