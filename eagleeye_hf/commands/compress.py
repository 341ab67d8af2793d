"""`eagleeye compress`."""

from __future__ import annotations

from eagleeye_hf.runs.config import RunConfig as Config

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Find the best thin version of a trained network under a budget, fine-tune it, save it with its card.

    A run that was killed goes on when started again with the same command.
    """
    from accelerate.utils import set_seed

    from eagleeye_hf.data.splits import open_splits
    from eagleeye_hf.runs.adapt import adapt_model
    from eagleeye_hf.runs.compress import compress_model
    from eagleeye_hf.runs.folder import check_output
    from eagleeye_hf.runs.models import load_model
    from eagleeye_hf.runs.recipe import use_all_cores

    use_all_cores()
    check_output(config.output, "compress")  # before anything takes time
    set_seed(config.seed)
    model = load_model(config.network.model, config.network.weights, config.network.inputs)
    data = open_splits(like=model, **config.splits)
    if config.adapt.adapt_epochs:
        model = adapt_model(model, data, config)
    compress_model(model, data, config)
