"""Training as processes of their own: two at once, and one that is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(Path(__file__).with_name("run_training.py"))
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]
TWO = [*LAUNCH, "--num_machines", "1", "--main_process_port", "0"]


def start(folder: Path, kinds: str, launcher: list[str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, *(launcher or []), SCRIPT, str(folder), *kinds.split()]
    return subprocess.Popen(
        command, env=ENVIRONMENT, cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> str:
    _, told = process.communicate()
    assert process.returncode == 0, told[-3000:]
    return told


def run(folder: Path, kinds: str, launcher: list[str] | None = None) -> str:
    return finish(start(folder, kinds, launcher))


def weights(folder: Path, kind: str, process: int = 0) -> torch.Tensor:
    tensors = torch.load(folder / f"{kind}-{process}.pt")
    return torch.cat([tensor.flatten().double() for tensor in tensors.values()])


def facts(folder: Path, kind: str, process: int = 0) -> list[dict]:
    return json.loads((folder / f"{kind}-{process}.json").read_text())


def test_two_processes_train_as_one_does(tmp_path):
    """Every image once, ragged ends weighted right, one result, and the number of processes told."""
    assert run(tmp_path / "one", "start map stream").count("fine-tuning on 1 process (cpu") == 2
    told = run(tmp_path / "two", "map stream norms", TWO)
    assert told.count("fine-tuning on 2 processes (cpu") == told.count("fine-tuning on") == 3
    assert torch.equal(weights(tmp_path / "two", "norms"), weights(tmp_path / "two", "norms", 1))
    ours, others = (facts(tmp_path / "two", "norms", rank)[-1] for rank in (0, 1))
    assert ours["read"] >= 40, "held-out images are read"
    assert others["read"] == 0, "and by one process"
    assert ours["identity"] == others["identity"]
    start = weights(tmp_path / "one", "start")
    for kind, images in (("map", 171), ("stream", 177)):
        first = weights(tmp_path / "two", kind)
        assert torch.equal(first, weights(tmp_path / "two", kind, 1))
        (one,), (two,) = facts(tmp_path / "one", kind), facts(tmp_path / "two", kind)
        assert one["images"] == two["images"] == images
        change = weights(tmp_path / "one", kind) - start
        assert change.norm() > 1e-3
        if kind == "map":  # a stream has another order on two processes
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
            assert one["top1"] == two["top1"]
            assert (first - start - change).norm() < 1e-3 * change.norm()


@pytest.mark.slow
def test_two_machines_train_as_two_processes_do(tmp_path):
    run(tmp_path / "processes", "map", TWO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = ["--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port]
    machines = [
        start(tmp_path / "machines", "map", [*LAUNCH, *place, "--machine_rank", str(rank)]) for rank in range(2)
    ]
    assert all("fine-tuning on 2 processes" in finish(machine) for machine in machines)
    assert facts(tmp_path / "machines", "map") == facts(tmp_path / "processes", "map")
    assert torch.equal(weights(tmp_path / "machines", "map"), weights(tmp_path / "processes", "map"))


def test_kill_9_at_any_moment(tmp_path):
    """Killed again and again, at moments of no choosing, training ends bit for bit where an undisturbed run does."""
    run(tmp_path / "whole", "killed")
    command = [sys.executable, SCRIPT, str(tmp_path / "killed"), "killed"]
    training = tmp_path / "killed" / "training"
    kills = 0
    for wanted in (4, 17):
        process = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            steps = [int(path.name.split("-")[1]) for path in training.glob("step-*") if path.suffix != ".new"]
            if steps and max(steps) > wanted:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        process.wait()
    assert kills == 2
    run(tmp_path / "killed", "killed")
    assert facts(tmp_path / "killed", "killed") == facts(tmp_path / "whole", "killed")
    assert torch.equal(weights(tmp_path / "killed", "killed"), weights(tmp_path / "whole", "killed"))
    assert len(list(training.iterdir())) == 2


def test_two_processes_agree_on_a_checkpoint_and_on_an_error(tmp_path):
    """One that can't write ends both; a damaged checkpoint is passed over by both; the end is the undisturbed one's."""
    whole, folder = tmp_path / "whole", tmp_path / "full"
    run(whole, "killed", TWO)
    run(folder, "apart full", TWO)
    first, second = ((folder / f"apart-{rank}.txt").read_text().replace(f"disk-{rank}", "disk") for rank in (0, 1))
    assert first == second
    assert "is not seen by process 1; choose a folder on a disk that all machines share" in first
    first, second = ((folder / f"full-{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert "can't be written any more ([Errno 28] No space left on device); the last checkpoint is whole" in first
    older, newest = sorted((folder / "training").iterdir())
    (newest / "random_states_1.pkl").unlink()
    told = run(folder, "killed", TWO)
    assert told.count(f"{newest} is damaged (random_states_1.pkl is missing)") == 1
    assert f"going on in epoch 1 after step {int(older.name.split('-')[1])}" in told
    for rank in (0, 1):
        assert torch.equal(weights(folder, "killed", rank), weights(whole, "killed"))
    assert facts(folder, "killed") == facts(whole, "killed")
    told = run(folder, "killed")
    assert "was written by 2 processes and goes on in 1: what is drawn at random" in told
