"""Save a pruned network as a folder that timm, transformers and this package load; load one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from timm.layers import FrozenBatchNormAct2d, unfreeze_batch_norm_2d
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.networks.description import unwrap_model
from eagleeye_hf.networks.running import device_of
from eagleeye_hf.publishing.claims import check_claims, find_input, rebuild_empty
from eagleeye_hf.publishing.config import BUILDER, CARD, CONFIG, MAX_CONFIG_BYTES, WEIGHTS, read_config
from eagleeye_hf.publishing.confirmation import confirm_outputs
from eagleeye_hf.publishing.download import download_checkpoint
from eagleeye_hf.publishing.files import write_files
from eagleeye_hf.publishing.own import build_own, own_config
from eagleeye_hf.publishing.recording import build_config
from eagleeye_hf.publishing.weights import check_finite, check_weights, load_weights, save_weights, widest_type


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    label_names: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    card: str | None = None,
    builder: Callable[[], nn.Module] | None = None,
    input_size: Sequence[int] | None = None,
) -> Path:
    """Write `model.safetensors`, `config.json` and, where given, the model card.

    The network that loading will build is built first and run on random images: nothing is saved that would load as
    another. All files are written before any is renamed to its place, `config.json` last: a folder that has it is
    whole.

    Args:
        model: a network of timm, pruned by `slice_model` or not, its branches merged by
            `timm.utils.reparameterize_model` or not. Its floating-point type is kept; of several, loading gives the
            widest. BatchNorm that `timm.utils.freeze` froze is saved, and loads, as BatchNorm.
        folder: must not hold a checkpoint yet.
        label_names: class names, one per output.
        provenance: facts about how the model was made, kept in the `eagleeye` block of `config.json`.
        card: text of the model card, from `write_card`.
        builder: makes the full network, for one that timm does not know; loading needs it again.
        input_size: `(channels, height, width)` of an image of such a network, where it does not tell.
    Raises:
        EagleEyeError: the folder holds a checkpoint or can't be written, the model holds NaN, it can't be rebuilt from
            a timm architecture, or what is rebuilt gives other outputs.
    """
    folder, model = Path(folder), unwrap_model(model)
    check_free(folder, card is not None)
    check_finite(model)
    whole = _thaw_statistics(model)
    if builder is not None:
        config, rebuilt = own_config(whole, builder, input_size, label_names, provenance)
    else:
        config, rebuilt = build_config(whole, label_names, provenance)
    text = json.dumps(config, indent=2, allow_nan=False)
    if len(text) > MAX_CONFIG_BYTES:
        raise EagleEyeError(f"`provenance` makes config.json larger than {MAX_CONFIG_BYTES >> 20} MiB; keep less of it")
    arguments, cfg = config["model_args"], config["pretrained_cfg"]
    size = tuple(cfg["input_size"]) if builder is not None else find_input(rebuilt, arguments, cfg)
    if builder is None:
        try:
            check_claims(rebuilt, arguments, cfg, config["num_classes"], config["num_features"])
        except EagleEyeError as error:
            raise EagleEyeError(f"`model` can't be saved, since it would not load: {error}") from error
    confirm_outputs(model, _with_tensors(rebuilt, whole), size)
    writers: dict[str, Callable[[Path], object]] = {WEIGHTS: partial(save_weights, whole)}
    if card is not None:
        writers[CARD] = partial(Path.write_text, data=card, encoding="utf-8")
    write_files(folder, writers | {CONFIG: partial(Path.write_text, data=text, encoding="utf-8")})
    return folder


def check_free(folder: Path, card: bool = False) -> None:
    """Refuse a folder that holds a checkpoint already (with `card`, a card), or that is a file."""
    if folder.exists() and not folder.is_dir():
        raise EagleEyeError(f"`folder={folder}` is a file; give a folder")
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        raise EagleEyeError(f"`folder={folder}` holds a checkpoint already; choose another, or move that away")
    if card and (folder / CARD).exists():
        raise EagleEyeError(f"`folder={folder}` holds a {CARD} already; choose another, or move that away")


def _thaw_statistics(model: nn.Module) -> nn.Module:
    """The network with BatchNorm where that is frozen, so that its tensors have the names of timm's."""
    frozen = FrozenBatchNorm2d, FrozenBatchNormAct2d
    if not any(isinstance(module, frozen) for module in model.modules()):
        return model
    model = copy.deepcopy(model).cpu()
    for module in model.modules():
        if isinstance(module, frozen):
            module.num_features, module.affine = len(module.weight), True  # torchvision's own have neither
    return unfreeze_batch_norm_2d(model)


def _with_tensors(rebuilt: nn.Module, model: nn.Module) -> nn.Module:
    """The empty network with the tensors of the model, as loading would give them."""
    tensors = model.state_dict()
    dtype = widest_type(tensor.dtype for tensor in tensors.values())
    shared = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    rebuilt.load_state_dict(shared, assign=True)
    return rebuilt.to(device_of(model), dtype)


def from_pretrained(
    path_or_repo: str | Path,
    revision: str | None = None,
    *,
    builder: Callable[[], nn.Module] | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> nn.Module:
    """Load a pruned network from a folder or a Hub repo, in eval mode and in the floating-point type of its file.

    Nothing from the checkpoint is run or unpickled: sizes are checked against the base architecture, what the network
    then says of its channels against a pass without values, and tensors against the sizes. (timm's own loader gives
    float32, whatever the file holds.)

    Args:
        builder: makes the full network, for a checkpoint that was saved with one.
    Raises:
        EagleEyeError: there is no checkpoint, or it is damaged, or its tensors don't fit its `config.json`.
    """
    folder = Path(path_or_repo)
    if not folder.is_dir():
        folder = download_checkpoint(str(path_or_repo), revision, token, cache_dir)
    config, model = open_checkpoint(folder, builder)
    load_weights(model, folder)
    arguments = config["model_args"]
    cfg = {**getattr(model, "pretrained_cfg", {}), **config["pretrained_cfg"], "num_classes": config["num_classes"]}
    model.pretrained_cfg = model.default_cfg = cfg | {  # type: ignore[assignment]
        "architecture": arguments.get("base", ""),
        "label_names": config["label_names"],
    }
    return model.eval()


def open_checkpoint(folder: Path, builder: Callable[[], nn.Module] | None = None) -> tuple[dict[str, Any], nn.Module]:
    """The checked config of a folder and its network, whose parameters have no values yet.

    Args:
        builder: as for `from_pretrained`.
    Raises:
        EagleEyeError: there is no config, or it does not describe a network.
    """
    config = read_config(folder)
    arguments, num_classes = config["model_args"], config["num_classes"]
    if (BUILDER in arguments) != (builder is not None):
        raise EagleEyeError(
            f"{folder} is of a network of your own, which `{arguments[BUILDER]}` built: load it with "
            "`eagleeye_hf.from_pretrained(FOLDER, builder=...)`"
            if builder is None
            else f"`builder`: {folder} is of timm's {arguments['base']}, which needs none"
        )
    if builder is not None:
        model = build_own(builder, arguments["sizes"], arguments.get("removed_blocks", ()))
        check_weights(model, folder)
        return config, model
    try:
        model = rebuild_empty(arguments, num_classes)
        check_weights(model, folder)
        check_claims(model, arguments, config["pretrained_cfg"], num_classes, config.get("num_features", 0))
    except EagleEyeError as error:
        where = "" if str(folder) in str(error) else f"{folder / CONFIG}: "
        raise EagleEyeError(f"{where}{error}") from error
    return config, model


def state_bytes(model: nn.Module) -> int:
    """Bytes of a network's tensors: the size of its file, but for the header."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def weights_size(folder: Path) -> int:
    """Bytes of the saved weights."""
    return (folder / WEIGHTS).stat().st_size
