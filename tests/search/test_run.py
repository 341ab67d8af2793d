import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import timm

from eagleeye_hf import EagleEyeError, SearchConfig, run_search, trace_model

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Score:
    loss: float
    top1: float = 0.5
    num_images: int = 8


@pytest.fixture(scope="module")
def graph():
    return trace_model(timm.create_model("resnet20_cifar"))


def by_sum(widths, share=1.0) -> Score:
    return Score(loss=1000 - sum(widths))


CONFIG = SearchConfig(candidates=8, method="random", stages=(1.0,))


def test_the_lowest_loss_wins(graph):
    result = run_search(by_sum, graph, CONFIG)
    assert sum(result.best.strategy.widths) == max(sum(c.strategy.widths) for c in result.candidates)
    assert [c.index for c in result.candidates] == list(range(8))
    assert result.candidates[0].strategy.origin == "uniform"


def test_a_killed_search_goes_on_where_it_was(graph, tmp_path):
    scored = []

    def dies(widths, share):
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(widths)
        return by_sum(widths)

    with pytest.raises(KeyboardInterrupt):
        run_search(dies, graph, CONFIG, output=tmp_path)
    journal = tmp_path / "search.jsonl"
    with journal.open("a") as file:
        file.write('{"index": 3, "orig')  # torn by the kill
    again = []
    result = run_search(lambda w, share: again.append(w) or by_sum(w), graph, CONFIG, output=tmp_path)
    assert len(again) == 5
    assert [(c.index, c.strategy, c.loss) for c in result.candidates] == [
        (c.index, c.strategy, c.loss) for c in run_search(by_sum, graph, CONFIG).candidates
    ]
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(rows) == 9
    assert {"index", "origin", "widths", "macs", "params", "loss", "top1", "num_images", "seconds", "status"} <= set(
        rows[1]
    )


def test_another_configuration_is_refused_with_the_difference(graph, tmp_path):
    run_search(by_sum, graph, CONFIG, output=tmp_path, fingerprint={"weights": "a"})
    with pytest.raises(EagleEyeError, match="seed: 0 then, 5 now"):
        run_search(by_sum, graph, replace(CONFIG, seed=5), output=tmp_path, fingerprint={"weights": "a"})
    with pytest.raises(EagleEyeError, match="weights: 'a' then, 'b' now"):
        run_search(by_sum, graph, CONFIG, output=tmp_path, fingerprint={"weights": "b"})
    (tmp_path / "search.jsonl").write_text("not json\n")
    with pytest.raises(EagleEyeError, match="is not a search journal"):
        run_search(by_sum, graph, CONFIG, output=tmp_path)


def test_a_candidate_that_fails_is_recorded_and_ends_nothing(graph):
    calls = []

    def sometimes(widths, share):
        calls.append(widths)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return Score(loss=float("nan")) if len(calls) == 3 else by_sum(widths)

    result = run_search(sometimes, graph, CONFIG)
    assert result.candidates[1].status == "RuntimeError: out of memory"
    assert "finite" in result.candidates[2].status
    assert len(result.leaders) == 6

    def never(widths, share):
        raise RuntimeError("broken")

    with pytest.raises(EagleEyeError, match=r"no candidate could be scored; the first one failed with: .*broken"):
        _ = run_search(never, graph, CONFIG).best


SCRIPT = """
import sys, torch, timm
from pathlib import Path
from eagleeye_hf import AdaptiveBNScore, SearchConfig, run_search, trace_model
from eagleeye_hf.evaluation.format import Format
torch.set_num_threads(1)
torch.manual_seed(0)
model = timm.create_model("resnet20_cifar").eval()
graph = trace_model(model)
batches = [(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))) for _ in range(2)]
score = AdaptiveBNScore(model, graph, batches[:1], batches[1:], format=Format())
run_search(score, graph, SearchConfig(candidates=5), output=Path(sys.argv[1]))
"""


def test_two_processes_find_what_one_does(tmp_path):
    script = tmp_path / "search.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no"]
    rows = []
    for processes in (1, 2):
        several = ["--multi_gpu"] if processes > 1 else []
        command = [*launch, *several, "--num_processes", str(processes), str(script), str(tmp_path / str(processes))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = (tmp_path / str(processes) / "search.jsonl").read_text().splitlines()[1:]
        rows.append(sorted(({**json.loads(line), "seconds": 0} for line in lines), key=lambda row: row["index"]))
    assert len(rows[0]) == 5
    assert rows[0] == rows[1]
