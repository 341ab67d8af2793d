"""From a strategy to a network: the channels that stay, cut out, and repaired where that is asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from eagleeye_hf.channels.graph import ChannelGraph
from eagleeye_hf.channels.refill import RefilledModel
from eagleeye_hf.channels.removal import is_removed
from eagleeye_hf.channels.slicing import slice_model
from eagleeye_hf.networks.config import InputConfig
from eagleeye_hf.networks.load import adjust_input
from eagleeye_hf.networks.running import Batch
from eagleeye_hf.networks.threads import one_thread
from eagleeye_hf.pruning.compensate import ReaderMoments, compensate_readers
from eagleeye_hf.pruning.config import Criterion, ImportanceConfig
from eagleeye_hf.pruning.importance import Importance
from eagleeye_hf.strategies.strategy import Strategy


class Builder:
    """Builds the candidates of one network; importance and moments are computed once.

    Args:
        calibration: batches of training images, for compensation and the criteria that look at images.
        seed: of the criterion `random`.
        importance: instead of one by `criterion`, which may go by these images.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        calibration: Sequence[Batch],
        criterion: Criterion = ImportanceConfig.criterion,
        seed: int = 0,
        importance: Importance | None = None,
    ) -> None:
        self.model, self.graph, self.calibration = model, graph, calibration
        self.moments = ReaderMoments(model, graph, calibration)
        """Of the readers' inputs in the full network, over the calibration images."""
        with one_thread():
            self.importance = importance or Importance(model, graph, criterion, calibration, seed, self.moments)
        self._of_thread = threading.local()
        self._lock = threading.Lock()

    def build(self, strategy: Strategy, compensate: bool) -> nn.Module:
        """A thin model of its own, with the full model's statistics, to be trained or saved."""
        keep, changed, removed = self.choose(strategy, compensate)
        thin = slice_model(self.model, self.graph, keep, removed)
        if compensate:
            repaired = RefilledModel(self.model, self.graph).fill(keep, changed, removed)
            thin.load_state_dict(repaired.state_dict())  # in the type of the full model
        if strategy.image_size is not None:
            adjust_input(thin, InputConfig(image_size=strategy.image_size))
        return thin

    def fill(self, strategy: Strategy, compensate: bool, channels_last: bool = False) -> nn.Module:
        """The same in modules that are built once per thread; good until this thread's next call."""
        models: dict[bool, RefilledModel] = vars(self._of_thread).setdefault("models", {})
        if channels_last not in models:
            with self._lock:
                models[channels_last] = RefilledModel(self.model, self.graph, channels_last)
        return models[channels_last].fill(*self.choose(strategy, compensate))

    def choose(
        self, strategy: Strategy, compensate: bool
    ) -> tuple[dict[str, np.ndarray], dict[str, Tensor], tuple[str, ...]]:
        """Channels that stay, per group; full-sized tensors that stand in for the model's own, by name; and the blocks
        that are gone."""
        keep, removed = self.importance.choose(strategy.widths), strategy.removed_blocks
        if not compensate:
            return keep, {}, removed
        moments = {name: found for name, found in self.moments.get().items() if not is_removed(name, removed)}
        return keep, compensate_readers(self.model, self.graph, keep, moments), removed
