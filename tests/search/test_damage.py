"""Journals that a disk, an editor or another version has changed."""

import contextlib
import json
import random
from dataclasses import replace

import pytest
import timm

from eagleeye_hf import EagleEyeError, SearchConfig, run_search, trace_model
from eagleeye_hf.evaluation.preparation import FullScores, Preparation
from eagleeye_hf.search import journal as module
from eagleeye_hf.search.reading import read_journal
from eagleeye_hf.search.scorer import FunctionScorer
from tests.search.test_run import BY_SUM, Score, by_sum, essence

CONFIG = SearchConfig(candidates=12, generation=6, stages=(0.125, 1.0), macs=[0.6, 0.4])


@pytest.fixture(scope="module")
def graph():
    return trace_model(timm.create_model("resnet20_cifar"))


@pytest.fixture(scope="module")
def expected(graph):
    return essence(run_search(BY_SUM, graph, CONFIG))


@pytest.fixture(scope="module")
def whole(graph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_search(BY_SUM, graph, CONFIG, output=folder)
    return (folder / "search.jsonl").read_bytes()


@pytest.fixture
def journal(whole, tmp_path):
    path = tmp_path / "search.jsonl"
    path.write_bytes(whole)
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    """As they are, without checksums, so that nothing but the values themselves can be found wrong."""
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "checksum"}) + "\n" for row in rows))


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[] if n < 36 else pytest.mark.slow) for n in range(90)])
def test_a_damaged_journal_goes_on_to_the_same_or_is_refused(graph, journal, expected, seed):
    luck = random.Random(seed)
    kind = ("cut", "flip", "swap", "remove", "repeat", "lines")[seed % 6]
    data, rows = journal.read_bytes(), rows_of(journal)
    row = luck.choice(rows)
    inner = luck.choice([row, *(value for value in row.values() if isinstance(value, dict) and value)])
    key = luck.choice([key for key in inner if key != "checksum"])
    if kind == "cut":
        journal.write_bytes(data[: luck.randrange(len(data))])
    elif kind == "flip":
        changed = bytearray(data)
        for _ in range(luck.choice([1, 1, 5])):
            changed[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
        journal.write_bytes(changed)
    elif kind == "swap":
        others = ["text", [1], None, {"a": 1}, True, float("nan"), float("inf"), -1, [[]], 10**400]
        inner[key] = luck.choice([value for value in others if type(value) is not type(inner[key])])
        write(journal, rows)
    elif kind == "remove":
        del inner[key]
        write(journal, rows)
    elif kind == "repeat":
        lines = data.splitlines(keepends=True)
        for _ in range(3):
            lines.insert(luck.randrange(1, len(lines)), luck.choice(lines[1:]))
        journal.write_bytes(b"".join(lines))
    else:
        lines = data.splitlines(keepends=True)
        del lines[luck.randrange(len(lines))]
        lines.insert(luck.randrange(len(lines)), luck.choice([b"\n", b" \r\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n"]))
        journal.write_bytes(b"".join(lines))
    refused = None
    for _ in range(2):  # what is written on top can be read again
        with contextlib.suppress(EagleEyeError):
            read_journal(journal)
        try:
            assert essence(run_search(BY_SUM, graph, CONFIG, output=journal.parent)) == expected
        except EagleEyeError as error:
            refused = str(error)
    assert refused is None or (kind != "repeat" and "\n" not in refused)


def test_a_damaged_line_is_named(journal):
    whole = journal.read_text()
    for old, new in (
        ('"kind": "score"', '"kind": "sore"'),
        ('"widths": [', '"widths": [-'),
        ('"stage"', '"stave"'),
        ('"loss": ', '"loss": 1'),
    ):
        journal.write_text(whole.replace(old, new, 1))
        with pytest.raises(EagleEyeError, match=r"search.jsonl is not a search journal \(line 2: "):
            read_journal(journal)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": {"loss": "low", "reported": 0.5, "num_images": 80}}, "`loss` is a number; got 'low'"),
        ({"score": {"loss": float("nan"), "reported": 0.5, "num_images": 80}}, "`loss` is a number; got nan"),
        ({"score": {"loss": 10**400, "reported": 0.5, "num_images": 80}}, "OverflowError"),
        ({"score": None}, "`score` and `status=ok` contradict each other"),
        ({"macs": -5}, "`macs` is -5, below 0"),
        ({"index": True}, "`index` is an integer; got True"),
        ({"seconds": float("inf")}, "`seconds` is a number; got inf"),
        ({"stage": -1}, "`stage` is -1, below 0"),
        ({"budget": 7}, "`budget=7` of 2"),
        ({"strategy": {"widths": [16]}}, "1 widths of "),
    ],
)
def test_wrong_values_are_named(journal, changes, message):
    rows = rows_of(journal)
    rows[3] |= changes
    write(journal, rows)
    with pytest.raises(EagleEyeError, match=r"search.jsonl is not a search journal \(line 4: ") as caught:
        read_journal(journal)
    assert message in str(caught.value)


def test_what_the_search_would_not_propose_is_refused(graph, journal):
    original = rows_of(journal)
    other = original[3]["strategy"]
    for changes, what in (
        ({"strategy": other}, "strategy"),
        ({"origin": "guessed"}, "origin"),
        ({"budget": 1}, "budget"),
        ({"macs": 5}, "cost"),
    ):
        rows = [dict(row) for row in original]
        assert rows[1]["index"] == rows[1]["stage"] == 0
        rows[1] |= changes
        write(journal, rows)
        with pytest.raises(EagleEyeError, match=rf"of candidate 0 was written .* edited \(another {what} than"):
            run_search(BY_SUM, graph, CONFIG, output=journal.parent)


def test_the_last_line_about_the_same_holds_and_empty_ones_hurt_nobody(graph, journal, expected):
    rows = rows_of(journal)
    wrong = {**rows[1], "score": {**rows[1]["score"], "loss": 0.0}}
    write(journal, [rows[0], wrong, *rows[1:]])
    journal.write_text(journal.read_text().replace("\n", "\n\n", 3))
    assert essence(run_search(BY_SUM, graph, CONFIG, output=journal.parent)) == expected
    record = read_journal(journal)
    assert essence(record) == expected
    assert record.candidates[0].seconds == sum(row["seconds"] for row in rows[1:] if row["index"] == 0)


def test_a_failure_that_was_none_changes_what_follows(graph, tmp_path):
    """As in journals of a version that recorded what a sick device did: later proposals hang on what had failed."""
    sick = []

    def sometimes(strategy, fraction):
        sick.append(strategy)
        return (
            Score(loss=float("nan"), reported=0, num_images=8) if len(sick) in (2, 3, 9) else by_sum(strategy, fraction)
        )

    config = replace(CONFIG, candidates=20, macs=0.5)
    first = run_search(FunctionScorer(sometimes), graph, config, output=tmp_path)
    expected = run_search(BY_SUM, graph, config)
    assert [c.strategy for c in first.candidates] != [c.strategy for c in expected.candidates]
    calls = []

    def dies(strategy, fraction):
        calls.append(strategy)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return by_sum(strategy, fraction)

    with pytest.raises(KeyboardInterrupt):  # in the midst of going on
        run_search(FunctionScorer(dies), graph, config, output=tmp_path)
    for _ in range(2):
        assert essence(run_search(BY_SUM, graph, config, output=tmp_path)) == essence(expected)
        assert [c.strategy for c in read_journal(tmp_path).candidates] == [c.strategy for c in expected.candidates]


def test_minutes_count_a_failure_that_is_tried_again_where_it_was(graph, tmp_path):
    """Else a search that goes on would end before it has read all that it had found."""
    config = replace(CONFIG, candidates=None, minutes=1.0, macs=0.5)
    clock = [0.0]

    def slow(strategy, fraction):
        clock[0] += 5
        nan = clock[0] == 10
        return Score(loss=float("nan"), reported=0, num_images=8) if nan else by_sum(strategy, fraction)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eagleeye_hf.search.workers.time.perf_counter", lambda: clock[0])
        first = run_search(FunctionScorer(slow), graph, config, output=tmp_path)
        clock[0] += 600
        nan = Score(loss=float("nan"), reported=0, num_images=8)
        again = run_search(FunctionScorer(lambda *_: nan), graph, config, output=tmp_path)
    assert len(first.candidates) == 12
    assert essence(again) == essence(first)


def test_full_scores_that_are_not_finite_can_be_read_again(graph, tmp_path):
    class Broken(FunctionScorer):
        def prepare(self, examples, latency=False):
            nan = Score(loss=float("nan"), reported=0.1, num_images=8)
            return Preparation(full=FullScores(unchanged=nan, adaptive=nan, chance=by_sum(examples[0])))

    for _ in range(2):
        run_search(Broken(by_sum), graph, CONFIG, output=tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_told_and_the_same_command_goes_on(graph, tmp_path, expected, monkeypatch, call):
    original, calls = getattr(module.os, call), []

    def full(*args):
        calls.append(args)
        if len(calls) >= (2 if call == "fsync" else 1):
            raise OSError(28, "No space left on device")
        return original(*args)

    monkeypatch.setattr(module.os, call, full)
    with pytest.raises(EagleEyeError, match=r"`output=.*` can't be written any more \(.*No space left.*make room"):
        run_search(BY_SUM, graph, CONFIG, output=tmp_path)
    monkeypatch.undo()
    assert essence(run_search(BY_SUM, graph, CONFIG, output=tmp_path)) == expected


def test_a_journal_that_can_not_be_read_is_told(graph, tmp_path):
    (tmp_path / "search.jsonl").mkdir()
    with pytest.raises(EagleEyeError, match=r"search.jsonl can't be read: "):
        run_search(BY_SUM, graph, CONFIG, output=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(EagleEyeError, match=r"`output=.*file/run` can't be written any more"):
        run_search(BY_SUM, graph, CONFIG, output=tmp_path / "file" / "run")
