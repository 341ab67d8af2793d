"""A run touches only what it wrote, and nobody else writes there at the same time."""

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from eagleeye_hf import EagleEyeError
from eagleeye_hf.data import image_set
from eagleeye_hf.runs.arguments import run_main
from eagleeye_hf.runs.folder import SAVED, open_run
from tests.helpers import run_command

JOBS = ["compress", "search", "prune", "finetune"]


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", ["README.md", "search.py", "training/notes.txt", "search.jsonl", "config.json"])
def test_what_somebody_else_wrote_is_refused_and_stays(tmp_path, job, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    (tmp_path / "model.safetensors").write_text("mine, too")
    before = contents(tmp_path)
    with pytest.raises(EagleEyeError, match=r"is not empty \(it holds|holds a checkpoint already"):
        open_run(str(tmp_path), job)
    assert contents(tmp_path) == before


def test_what_comes_into_a_run_from_outside_is_refused_and_stays(tmp_path):
    run = open_run(str(tmp_path / "run"), "compress")
    run.write("run.yaml", "seed: 0")
    (run.path / "README.md").write_text("mine")
    again = open_run(str(run.path), "compress")
    with pytest.raises(EagleEyeError, match=r"holds README\.md, which this run has not written"):
        again.claim(*SAVED)
    again.remove(*SAVED, "training")
    assert (run.path / "README.md").read_text() == "mine"
    again.write("run.yaml", "seed: 1")  # its own may change
    assert (run.path / "run.yaml").read_text() == "seed: 1"


def test_a_run_that_was_killed_while_it_saved_goes_on(tmp_path):
    run = open_run(str(tmp_path), "compress")
    run.claim(*SAVED, "training")
    (tmp_path / "training").mkdir()
    for name in ("strategy.json", "model.safetensors", "README.md"):
        (tmp_path / name).touch()
    run = open_run(str(tmp_path), "compress")
    assert not run.has_result
    assert not (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "strategy.json").exists()
    for name in SAVED:
        (tmp_path / name).touch()
    run = open_run(str(tmp_path), "compress")
    assert run.has_result  # `config.json` comes last
    run.note(finished=True)
    with pytest.raises(EagleEyeError, match="holds a checkpoint already; publish it with `eagleeye push`"):
        open_run(str(tmp_path), "compress")
    with pytest.raises(EagleEyeError, match="is of `eagleeye compress`; choose another folder"):
        open_run(str(tmp_path), "search")


HOLD = """
import sys
import warnings
from eagleeye_hf.runs.folder import open_run
open_run(sys.argv[1], "search")
print("locked", flush=True)
sys.stdin.read()
"""


def test_two_runs_at_once_are_refused_and_a_killed_one_frees_its_folder(tmp_path, capsys):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "locked\n"
        code, _, err = run_command(capsys, "search", "resnet18", "--output", str(tmp_path / "run"))
        first.kill()
    assert code == 2
    assert "another run is at work there" in err
    open_run(str(tmp_path / "run"), "search")


OPEN = """
import sys
import warnings
from eagleeye_hf.runs.folder import open_run
for number in range(100):
    open_run(f"{sys.argv[1]}/{number}", "search")
"""


def test_processes_open_their_folder_at_once(tmp_path):
    """The main one makes it, while the others look."""
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    environments = [os.environ | {"RANK": rank} for rank in ("0", "1", "2")]
    started = [subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True) for own in environments]
    for process in started:
        with process:
            assert process.wait() == 0, process.stderr.read()
    assert len(list(tmp_path.iterdir())) == 100


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    open_run(str(tmp_path / "run"), "compress")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"job": 5, "files": []}', '{"job": "compress", "files": [1]}'])
def test_a_damaged_record_is_one_clear_error(tmp_path, damage):
    open_run(str(tmp_path), "compress")
    (tmp_path / ".eagleeye" / "run.json").write_text(damage)
    with pytest.raises(EagleEyeError, match=r"run.json is damaged \(.*\); choose another folder"):
        open_run(str(tmp_path), "compress")


@pytest.mark.parametrize("job", JOBS)
def test_an_output_that_can_not_be_is_one_line(tmp_path, capsys, monkeypatch, job):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "closed")  # it binds root, too
    strategy = ["--strategy", "s.json"] if job == "prune" else []
    for output, message in (
        ("", "`output` is a folder; got an empty text"),
        (str(tmp_path / "file"), "is a file; give a folder"),
        (str(tmp_path / "file" / "below"), "can't be written"),
        (str(tmp_path / "closed" / "below"), "can't be written"),
    ):
        code, _, err = run_command(capsys, job, "resnet18", *strategy, "--output", output)
        assert code == 2, output
        assert message in err
        assert len(err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_a_disk_that_refuses_is_one_line(number, capsys):
    def fail(config):
        raise OSError(number, os.strerror(number), "/data/run/search.jsonl")

    assert run_main(fail, lambda: None) == 2
    err = capsys.readouterr().err
    assert err == (
        f"error: `/data/run/search.jsonl`: {os.strerror(number)}. The same command goes on once that is mended.\n"
    )


def test_a_warning_of_ours_is_a_line(capsys):
    def remark(config: None) -> None:
        code = compile("import warnings\nwarnings.warn('2 of 64 images were skipped')", image_set.__file__, "exec")
        exec(code, {})
        warnings.warn("a library's own", stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run_main(remark, lambda: None) == 0
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "warning: 2 of 64 images were skipped"
    assert "UserWarning: a library's own" in others[0]


def test_the_record_is_plain(tmp_path):
    run = open_run(str(tmp_path), "search")
    run.claim("search.jsonl")
    record = json.loads((tmp_path / ".eagleeye" / "run.json").read_text())
    assert (record["job"], record["files"], record["finished"]) == ("search", ["search.jsonl"], False)
