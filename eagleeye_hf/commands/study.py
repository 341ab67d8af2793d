"""`eagleeye study`."""

from __future__ import annotations

from dataclasses import dataclass

from eagleeye_hf.commands.printing import PrintConfig
from eagleeye_hf.configs import check_fields
from eagleeye_hf.runs.study import StudyRunConfig


@dataclass(frozen=True, kw_only=True)
class Config(StudyRunConfig):
    printing: PrintConfig = PrintConfig()

    def __post_init__(self) -> None:
        check_fields(self)


def run(config: Config) -> None:
    """Check EagleEye's claim on a network and images of your own: fine-tune many random sub-nets, and tell which score
    before fine-tuning foretold their accuracy after it.

    A study that was killed goes on when started again with the same command.
    """
    from eagleeye_hf.data.splits import open_splits
    from eagleeye_hf.runs.config import split_arguments
    from eagleeye_hf.runs.folder import check_output
    from eagleeye_hf.runs.models import load_model
    from eagleeye_hf.runs.study import run_study

    check_output(config.output, "study", finished=True)
    model = load_model(config.network.model, config.network.weights, config.network.inputs)
    data = open_splits(like=model, **split_arguments(config.data, config.held_out, config.augmentation, config.seed))
    run_study(model, data, config)
