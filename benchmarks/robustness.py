"""What runs, files and the command line bear: kills, disks that refuse, damaged files, wrong values.

    python benchmarks/robustness.py                    # a quarter of an hour on one core; writes robustness.md
    python benchmarks/robustness.py kills --num 10     # one kind alone, printed

A small network is searched, pruned, trained and saved over and over. Whatever happens on the way, the same command is
started again, and has to end with the very same weights as a run that nothing disturbed; or, where it can't, with one
line that begins with `error:` and exit code 2. Tracebacks, other weights and damaged results count as failures.
"""

import argparse
import contextlib
import errno
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from eagleeye_hf import (
    DatasetConfig,
    EagleEyeError,
    FinetuneConfig,
    HeldOutConfig,
    NetworkConfig,
    RunConfig,
    SearchConfig,
    from_pretrained,
)
from eagleeye_hf.cli import COMMANDS
from eagleeye_hf.cli import main as command
from eagleeye_hf.commands import compress
from eagleeye_hf.configs import annotations_of
from eagleeye_hf.publishing import checkpoint as _warm  # noqa: F401  imported before the first fork
from eagleeye_hf.runs import adapt  # noqa: F401
from eagleeye_hf.runs.arguments import run_main
from eagleeye_hf.runs.folder import read_record

TABLE = Path(__file__).with_suffix(".md")
MOMENTS = ("replace", "fsync", "mkdir", "unlink", "rmdir")
"""Calls of `os` at which files change."""


@dataclass
class Tally:
    """What was tried, and what went wrong."""

    tried: int = 0
    refused: int = 0
    """Of them, those that ended with one clear line."""
    failures: list[str] | None = None

    def fail(self, what: str) -> None:
        self.failures = [*(self.failures or []), what]
        print(f"FAILED: {what}", flush=True)


@dataclass
class End:
    """How a run ended."""

    code: int
    errors: str
    moments: int
    seconds: float

    @property
    def clear(self) -> bool:
        """Whether it was one line."""
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        return self.code == 2 and len(lines) == 1 and "Traceback" not in self.errors


class Bench:
    """A network, images and the run on them, in a folder of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random, self.numbers = folder, random.Random(seed), iter(range(10**9))
        torch.set_num_threads(1)
        torch.manual_seed(0)
        save_file(timm.create_model("resnet20_cifar").state_dict(), folder / "weights.safetensors")
        _write_images(folder / "images")
        self.reference = self.fresh()
        end = self.start(self.reference)
        if end.code:
            raise SystemExit(f"the run itself fails: {end.errors}")
        self.weights, self.moments, self.seconds = _digest(self.reference), end.moments, end.seconds

    def fresh(self) -> Path:
        return self.folder / f"run-{next(self.numbers)}"

    def config(self, output: Path) -> RunConfig:
        return RunConfig(
            network=NetworkConfig(model="resnet20_cifar", weights=str(self.folder / "weights.safetensors")),
            data=DatasetConfig(dataset=str(self.folder / "images"), num_workers=0),
            held_out=HeldOutConfig(calibration_images=40, holdout_images=40),
            search=SearchConfig(candidates=4, stages=(1.0,)),
            finetune=FinetuneConfig(epochs=2, batch_size=40, lr=0.05, save_steps=2),
            output=str(output),
        )

    def start(self, output: Path, before: Callable[[], None] | None = None, kill_after: float | None = None) -> End:
        """Run in a forked process; `before` is called there first."""
        count, (told, tells) = self.folder / "count", os.pipe()  # a pipe, for files may be limited
        count.write_text("0")
        started, process = time.perf_counter(), os.fork()
        if not process:
            _become(lambda: run_main(compress.run, lambda: self.config(output)), tells, count, before)
        os.close(tells)
        killer = threading.Timer(kill_after, os.kill, (process, signal.SIGKILL)) if kill_after is not None else None
        if killer:
            killer.start()
        with os.fdopen(told, errors="replace") as pipe:
            errors = pipe.read()
        _, status = os.waitpid(process, 0)
        if killer:
            killer.cancel()
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return End(code, errors, int(count.read_text()), time.perf_counter() - started)

    def ends_well(self, output: Path, tally: Tally, what: str) -> None:
        """Start until the run is finished, and compare."""
        record = read_record(output)
        if record is None or not record["finished"]:
            end = self.start(output)
            if end.code:
                tally.fail(f"{what}: then exit code {end.code}, {end.errors[-1500:]}")
                return
        if _digest(output) != self.weights:
            tally.fail(f"{what}: other weights")
        elif (output / "training").exists():
            tally.fail(f"{what}: training checkpoints are left")
        shutil.rmtree(output)


def _become(run: Callable[[], int], tells: int, count: Path, before: Callable[[], None] | None) -> None:
    """The forked process: its output into a pipe, its file moments counted, no way back."""
    code = 70
    try:
        os.dup2(tells, 1)
        os.dup2(tells, 2)
        sys.stdout = sys.stderr = os.fdopen(tells, "w", buffering=1)
        warnings.simplefilter("ignore")
        if before is None:
            at_moment(None, lambda: None, count)
        else:
            before()
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def at_moment(number: int | None, act: Callable[[], None], count: Path | None = None) -> None:
    """Call `act` right before the n-th change of a file by this process; count them where none is given."""
    seen = iter(range(10**9))

    def watched(function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            place = next(seen)
            if place == number:
                act()
            if count is not None:
                count.write_text(str(place))
            return function(*args, **kwargs)

        return call

    for name in MOMENTS:
        setattr(os, name, watched(getattr(os, name)))


def test_kills(bench: Bench, num: int) -> Tally:
    """SIGKILL, half of them at the moments when files change, the others at any time; up to four times per run."""
    tally = Tally()
    output, kills = bench.fresh(), 0
    while tally.tried < num:
        if tally.tried % 2:
            place = bench.random.randrange(bench.moments)
            end = bench.start(output, lambda place=place: at_moment(place, lambda: os.kill(os.getpid(), 9)))
            what = f"killed at file moment {place} of {bench.moments}"
        else:
            after = bench.random.uniform(0, bench.seconds)
            end = bench.start(output, kill_after=after)
            what = f"killed after {after:.2f} of {bench.seconds:.2f} s"
        killed = end.code == -signal.SIGKILL
        tally.tried += killed
        kills += killed
        if not killed and end.code and not (read_record(output) or {}).get("finished"):
            tally.fail(f"{what}: exit code {end.code}, {end.errors[-1500:]}")
        if not killed or kills == 4:
            bench.ends_well(output, tally, what)
            output, kills = bench.fresh(), 0
    bench.ends_well(output, tally, "at the end")
    return tally


def test_disks(bench: Bench, num: int) -> Tally:
    """Files that can't grow (a limit of their size), calls that fail as on a full or read-only disk, a folder that is
    removed while the run is at work."""
    tally = Tally()
    for number in range(num):
        output, kind = bench.fresh(), ("limit", "call", "removed")[number % 3]
        place = bench.random.randrange(bench.moments)
        if kind == "limit":
            most = bench.random.choice([0, 100, 1000, 10_000, 100_000, 500_000])
            what, before = f"files of at most {most} bytes", lambda most=most: limit_files(most)
        elif kind == "call":
            code = bench.random.choice([errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
            what, before = (
                f"{os.strerror(code)} at file moment {place}",
                lambda c=code, p=place: at_moment(p, _raiser(c)),
            )
        else:
            what = f"the folder is removed at file moment {place}"
            before = lambda o=output, p=place: at_moment(p, lambda: shutil.rmtree(o, ignore_errors=True))  # noqa: E731
        end = bench.start(output, before)
        tally.tried += 1
        tally.refused += end.clear
        if end.code and not end.clear:
            tally.fail(f"{what}: exit code {end.code}, {end.errors[-1500:]}")
        bench.ends_well(output, tally, what)
    return tally


def limit_files(most: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def _raiser(code: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(code, os.strerror(code), "a file")

    return act


def damage(path: Path, randomness: random.Random) -> str:
    """Truncate, empty, remove or flip bytes of a file."""
    data, kind = bytearray(path.read_bytes()), randomness.choice(["truncated", "emptied", "removed", "flipped"])
    if kind == "removed":
        path.unlink()
    elif kind == "flipped" and data:
        for _ in range(randomness.randint(1, 20)):
            data[randomness.randrange(len(data))] ^= 1 << randomness.randrange(8)
        path.write_bytes(data)
    else:
        path.write_bytes(data[: randomness.randrange(len(data)) if kind == "truncated" and data else 0])
    return f"{path.name} {kind}"


def test_checkpoints(bench: Bench, num: int) -> Tally:
    """Files of the newest training checkpoint, or of both, damaged after a kill."""
    tally = Tally()
    source = bench.fresh()
    bench.start(source, lambda: at_moment(bench.moments * 3 // 4, lambda: os.kill(os.getpid(), 9)))
    assert len(list((source / "training").glob("step-*"))) == 2, "killed at another moment than meant"
    for number in range(num):
        output = bench.fresh()
        shutil.copytree(source, output)
        places = sorted((output / "training").glob("step-*"))[0 if number % 5 == 0 else 1 :]
        what = ", ".join(damage(bench.random.choice(sorted(p.iterdir())), bench.random) for p in places)
        tally.tried += 1
        bench.ends_well(output, tally, what)
    return tally


def test_journals(bench: Bench, num: int) -> Tally:
    """Journals cut, emptied, removed or with bytes flipped, values swapped; the run goes on or refuses in one line."""
    tally = Tally()
    source = bench.fresh()
    bench.start(source, lambda: at_moment(bench.moments // 4, lambda: os.kill(os.getpid(), 9)))
    for _ in range(num):
        output = bench.fresh()
        shutil.copytree(source, output)
        journal = output / "search.jsonl"
        what = damage(journal, bench.random) if bench.random.random() < 0.5 else _swap_value(journal, bench.random)
        end = bench.start(output)
        tally.tried += 1
        tally.refused += end.clear
        if end.code and not end.clear:
            tally.fail(f"{what}: exit code {end.code}, {end.errors[-1500:]}")
        elif not end.code and _digest(output) != bench.weights:
            tally.fail(f"{what}: other weights")
        shutil.rmtree(output)
    return tally


VALUES: list[Any] = [None, True, -1, 0, 3.5, 1e999, "text", "<img onerror=alert(1)>", [], [[]], {}, {"a": 1}, 10**30]


def _swap_value(path: Path, randomness: random.Random) -> str:
    """Another value, or none, somewhere in a file of JSON or of lines of JSON."""
    lines = path.read_text().splitlines()
    place = randomness.randrange(len(lines))
    data = json.loads(lines[place] if path.suffix == ".jsonl" else "\n".join(lines))
    target, key = data, None
    while isinstance(target, (dict, list)) and target:
        key = randomness.choice(list(target) if isinstance(target, dict) else range(len(target)))
        parent, target = target, target[key]
        if randomness.random() < 0.3:
            break
    value = randomness.choice(VALUES)
    if isinstance(parent, dict) and randomness.random() < 0.2:
        del parent[key]
    else:
        parent[key] = value
    if path.suffix == ".jsonl":
        lines[place] = json.dumps(data)
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text(json.dumps(data))
    return f"{path.name}: {key} is {value!r}"


def test_configs(bench: Bench, num: int) -> Tally:
    """`config.json` of a checkpoint with bytes flipped or values swapped: a whole network, or one clear error."""
    tally = Tally()
    good = (bench.reference / "config.json").read_bytes()
    folder = bench.fresh()
    folder.mkdir()
    shutil.copy(bench.reference / "model.safetensors", folder)
    for _ in range(num):
        (folder / "config.json").write_bytes(good)
        swap = bench.random.random() < 0.7
        what = (_swap_value if swap else damage)(folder / "config.json", bench.random)
        tally.tried += 1
        try:
            from_pretrained(folder)(torch.zeros(1, 3, 32, 32))
        except EagleEyeError:
            tally.refused += 1
        except Exception as error:
            tally.fail(f"{what}: {type(error).__name__}: {error}")
    return tally


def test_commands(bench: Bench, num: int) -> Tally:
    """Values that no flag takes, of every command: one line and exit code 2, before anything is opened."""
    tally = Tally()
    flags = [(name, flag) for name in COMMANDS for flag in _flags(_config_of(name))]
    for _ in range(num):
        name, flag = bench.random.choice(flags)
        shutil.rmtree(bench.folder / "none", ignore_errors=True)
        value = bench.random.choice(["", "-1", "nan", "inf", "1e400", "two", "0.5.5", "{}", "--", "\udcff", "١٢", "-"])
        words = [name, *["nothing"] * (2 if name == "push" else 1), flag, value, "--output", str(bench.folder / "none")]
        words = words if name not in ("push", "inspect", "evaluate", "report") else words[:-2]
        out, err = io.StringIO(), io.StringIO()
        tally.tried += 1
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = command(words)
        except BaseException as error:
            tally.fail(f"{words}: {type(error).__name__}: {error}")
            continue
        clear = code == 2 and err.getvalue().count("error: ") == 1
        tally.refused += clear
        if not clear or (bench.folder / "none").exists():
            tally.fail(f"{words}: exit code {code}, {err.getvalue()[-300:]}")
    return tally


def _config_of(name: str) -> type:
    return __import__(f"eagleeye_hf.commands.{name}", fromlist=["Config"]).Config


def _flags(config_class: Any) -> list[str]:
    found = []
    for field in fields(config_class):
        annotation = annotations_of(config_class)[field.name]
        if is_dataclass(annotation):
            found += _flags(annotation)
        elif field.name not in ("model", "checkpoint", "repo", "journal", "output") and annotation is not bool:
            found.append("--" + field.name.replace("_", "-"))
    return found


def _write_images(folder: Path) -> None:
    """Ten classes of noise with a bright stripe whose place tells the class."""
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    for split, count in (("train", 240), ("test", 40)):
        noise = np.random.default_rng(count).integers(0, 90, (count, 32, 32, 3), dtype=np.uint8)
        for number, pixels in enumerate(noise):
            pixels[3 * (number % 10) : 3 * (number % 10) + 3] = 255
        rows = {"image": [Image.fromarray(p) for p in noise], "label": [i % 10 for i in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


KINDS = {
    "kills": (test_kills, 100),
    "disks": (test_disks, 30),
    "checkpoints": (test_checkpoints, 30),
    "journals": (test_journals, 90),
    "configs": (test_configs, 3000),
    "commands": (test_commands, 200),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=[])
    parser.add_argument("--num", type=int, help="how many of each, instead of the table's")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ |= {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    lines = ["| what | tried | refused in one line | failed |", "|---|---:|---:|---:|"]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.seed)
        for name in arguments.kinds or KINDS:
            test, num = KINDS[name]
            tally = test(bench, arguments.num or num)
            failed += len(tally.failures or [])
            says = " ".join((test.__doc__ or "").split())
            lines.append(f"| {says} | {tally.tried} | {tally.refused} | {len(tally.failures or [])} |")
            print(lines[-1], flush=True)
    text = "\n".join(["# What goes wrong, and what comes of it", "", (__doc__ or "").split("\n\n")[2], "", *lines, ""])
    if not arguments.kinds and not arguments.num:
        TABLE.write_text(text)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
