"""A sick device is no bad candidate, in one process and in several."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from eagleeye_hf import EagleEyeError, SearchConfig, run_search, trace_model
from eagleeye_hf.search import pool as module
from eagleeye_hf.search import workers as module_of_workers
from eagleeye_hf.search.candidate import Scored, Task
from eagleeye_hf.search.links import Lost
from eagleeye_hf.search.scorer import FunctionScorer
from tests.search.test_run import BY_SUM, Timed, by_sum, essence

ROOT = Path(__file__).resolve().parents[2]
CONFIG = SearchConfig(candidates=60, method="random", stages=(1.0,), divisor=1)
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported elsewhere\n"


@pytest.fixture(scope="module")
def graph():
    return trace_model(timm.create_model("resnet20_cifar"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError(ILLEGAL), "RuntimeError: CUDA error: an illegal memory access was encountered"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "OutOfMemoryError: CUDA out of memory. Tried to"),
        (RuntimeError("MPS backend out of memory"), "RuntimeError: MPS backend out of memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_error_after_forty_candidates_costs_none_of_the_others(graph, tmp_path, error, told):
    scored = []

    def sick(strategy, fraction):
        if len(scored) >= 40:
            raise error
        scored.append(strategy)
        return by_sum(strategy)

    for _ in range(2):  # as often as it is tried
        with pytest.raises(EagleEyeError) as caught:
            run_search(FunctionScorer(sick), graph, CONFIG, output=tmp_path)
        assert f"scoring candidate 40 failed ({told})" in str(caught.value)
        assert "the same command goes on" in str(caught.value)
        assert "\n" not in str(caught.value)
    rows = [json.loads(line) for line in (tmp_path / "search.jsonl").read_text().splitlines()[1:]]
    assert {row["status"] for row in rows} == {"ok"}
    assert len(rows) == 40
    result = run_search(
        FunctionScorer(lambda strategy, fraction: scored.append(strategy) or by_sum(strategy)),
        graph,
        CONFIG,
        output=tmp_path,
    )
    assert essence(result) == essence(run_search(BY_SUM, graph, CONFIG))
    assert len(scored) == len(set(scored)) == 60
    with pytest.raises(EagleEyeError) as caught:  # without a journal there is nothing to go on from
        run_search(FunctionScorer(sick), graph, CONFIG)
    assert "the same command" not in str(caught.value)


@pytest.mark.parametrize("threads", [1, 4])
def test_where_memory_lacks_a_candidate_is_tried_again_alone(graph, tmp_path, monkeypatch, threads):
    tried, here, most, freed = {}, set(), {}, []
    lock = threading.Lock()
    monkeypatch.setattr(module, "free_memory", lambda: freed.append(len(here)))

    def crowded(strategy, fraction):
        with lock:
            here.add(threading.get_ident())
            tried[strategy] = tried.get(strategy, 0) + 1
            most[strategy] = len(here)
        time.sleep(0.001)
        with lock:
            here.remove(threading.get_ident())
        if sum(strategy.widths) % 3 == 0 and tried[strategy] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return by_sum(strategy)

    scorer = FunctionScorer(crowded)
    scorer.workers = threads
    result = run_search(scorer, graph, CONFIG, output=tmp_path)
    assert essence(result) == essence(run_search(BY_SUM, graph, CONFIG))
    again = [strategy for strategy, times in tried.items() if times == 2]
    assert again
    assert max(tried.values()) == 2
    assert {most[strategy] for strategy in again} == {1}
    assert freed == [0] * len(again)


def test_what_fails_before_and_after_the_candidates_is_told_in_one_line(graph, tmp_path):
    class Sick(Timed):
        moment = "prepare"

        def prepare(self, examples, latency):
            if self.moment == "prepare":
                raise RuntimeError(ILLEGAL)
            return super().prepare(examples, latency)

        def measure_latency(self, strategies):
            raise RuntimeError(ILLEGAL)

    scorer = Sick(by_sum)
    scorer.graph = graph
    config = replace(CONFIG, latency=0.5, candidates=8)
    for scorer.moment, told in (("prepare", "scoring the full network"), ("measure", "measuring milliseconds")):
        with pytest.raises(EagleEyeError, match=rf"^{told} failed \(RuntimeError: CUDA error: an illegal.*goes on$"):
            run_search(scorer, graph, config, output=tmp_path)


def test_a_mistake_in_a_scorer_keeps_its_traceback(graph):
    with pytest.raises(TypeError, match="can only concatenate"):
        run_search(FunctionScorer(lambda strategy, fraction: "a" + strategy), graph, CONFIG)


class Idle:
    """A pool, or connections, to which tasks go and from which nothing comes."""

    num_threads, ranks = 1, (1, 2)

    def __init__(self):
        self.given = []

    def submit(self, task):
        self.given.append((0, task.candidate.index))

    def send(self, rank, task):
        self.given.append((rank, task.candidate.index))


def test_a_process_that_dies_ends_the_search_once_the_others_are_done(graph):
    result = run_search(BY_SUM, graph, replace(CONFIG, candidates=8))
    idle = Idle()
    hands = module_of_workers._Hands(idle, idle)
    hands.add([Task(candidate=candidate, stage=0, fraction=1.0) for candidate in result.candidates])
    for rank in (1, 2):
        hands.take(rank, 1)  # each tells that it has a thread
    hands.give()
    assert sorted(idle.given) == [(0, 0), (1, 1), (2, 2)]
    assert hands.take(1, Lost()) == []
    hands.give()
    assert len(idle.given) == 3
    assert hands.busy
    for rank in (0, 2):
        line = Scored(candidate=result.candidates[rank], stage=0, score=None, status="x", seconds=0, elapsed=0)
        assert hands.take(rank, line) == [line]
    assert not hands.busy
    assert str(hands.failure) == "process 1 of the search ended; it tells why"


SCRIPT = """
import json, os, sys, time, timm
from pathlib import Path
from accelerate import Accelerator
from eagleeye_hf import EagleEyeError, SearchConfig, run_search, trace_model
from eagleeye_hf.runs.arguments import leave_processes
from eagleeye_hf.search import journal
from eagleeye_hf.search.scorer import FunctionScorer
from tests.search.test_run import by_sum
root, rank = Path(sys.argv[1]), Accelerator().process_index
graph = trace_model(timm.create_model("resnet20_cifar"))
config = SearchConfig(candidates=20, method="random", stages=(1.0,))
start, replace, fsync = journal.Journal.start, os.replace, os.fsync
def full(*arguments):
    raise OSError(28, "No space left on device")
def starts(self, prepared):
    start(self, prepared)
    journal.os.fsync = full
def life(moment, folder):
    calls = []
    class Sick(FunctionScorer):
        def prepare(self, examples, latency=False):
            if moment == "prepare":
                raise RuntimeError("CUDA error: broken")
            return super().prepare(examples, latency)
    def score(strategy, fraction):
        calls.append(strategy)
        time.sleep(0.01)
        if moment == "score" and rank == 1 and len(calls) == 2:
            raise RuntimeError("CUDA error: broken")
        return by_sum(strategy)
    journal.Journal.start = starts if moment == "append" else start
    journal.os.fsync = fsync
    journal.os.replace = full if moment == "start" else replace
    if moment == "read" and rank == 0:
        folder.mkdir()
        (folder / "search.jsonl").write_text("not ours")
    try:
        return f"best {run_search(Sick(score), graph, config, output=folder).best.index}"
    except EagleEyeError as error:
        return str(error)
moments = {"score": "run", "append": "run", "none": "run", "start": "a", "prepare": "b", "read": "c"}
told = {moment: life(moment, root / folder) for moment, folder in moments.items()}
(root / f"{rank}.json").write_text(json.dumps(told))
leave_processes()
"""


def test_an_error_in_one_process_ends_all_with_the_same_line(tmp_path):
    script = tmp_path / "search.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "--num_processes", "2"]
    command += [str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert told == other
    assert re.match(r"scoring candidate \d+ failed \(RuntimeError: CUDA error: broken\)", told["score"])
    assert "can't be written any more ([Errno 28] No space left" in told["append"]
    assert told["none"].startswith("best ")
    assert "can't be written any more ([Errno 28] No space left" in told["start"]
    assert "scoring the full network failed (RuntimeError: CUDA error" in told["prepare"]
    assert "is not a search journal (line 1" in told["read"]
    rows = [json.loads(row) for row in (tmp_path / "run" / "search.jsonl").read_text().splitlines()[1:]]
    assert sorted(row["index"] for row in rows) == list(range(20))
