"""`eagleeye compress`."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass

from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.configs import check_fields
from eagleeye_hf.processes import main_process_works
from eagleeye_hf.runs.config import JobConfig
from eagleeye_hf.telling import say


@dataclass(frozen=True, kw_only=True)
class Config(JobConfig):
    dry_run: bool = False
    """Say what would be done and how long it may take, and do nothing."""
    printing: PrintConfig = PrintConfig()

    def __post_init__(self) -> None:
        check_fields(self)


def run(config: Config) -> None:
    """Find the best thin version of a trained network under a budget, fine-tune it, save it with its card.

    Where the dataset's classes are not those of the network, the whole network is trained on it first, with a new head
    if need be (`--adapt-epochs 0`: not). A run that was killed goes on when started again with the same command.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    from eagleeye_hf.publishing.config import CONFIG
    from eagleeye_hf.runs.folder import check_output
    from eagleeye_hf.runs.job import do_job, open_job
    from eagleeye_hf.runs.plan import Clock, plan_job
    from eagleeye_hf.runs.recipe import use_all_cores

    use_all_cores()
    folder = check_output(config.output, "compress")  # before anything takes time
    accelerator = Accelerator()
    set_seed(config.seed)
    job = open_job(config, accelerator, download=not config.dry_run)
    as_json, clock = config.printing.json, None
    with main_process_works():
        if accelerator.is_main_process and not (folder / CONFIG).exists():
            model = job.model.to(accelerator.device).eval()
            plan = plan_job(model, job.data, job.config, job.notes, accelerator)
            if config.dry_run:
                print(json.dumps(plan.to_dict()) if as_json else plan)
            else:
                say(f"{plan}\n")
                clock = Clock(plan)
    if config.dry_run:
        return
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        result = do_job(job, clock)
    if as_json and accelerator.is_main_process:
        found = json.loads((result.folder / CONFIG).read_text(encoding="utf-8"))["eagleeye"]
        print(json.dumps({"folder": str(result.folder), "metrics": found["metrics"], "widths": found["widths"]}))
