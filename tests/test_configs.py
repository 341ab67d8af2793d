"""Settings: a config that exists is valid, and stands once, whoever gives it."""

import ast
import itertools
import json
from dataclasses import dataclass, fields, is_dataclass, replace
from inspect import getsource

import pytest
import yaml

import eagleeye_hf
from eagleeye_hf import (
    AdaptConfig,
    AugmentationConfig,
    DatasetConfig,
    EagleEyeError,
    FinetuneConfig,
    HeldOutConfig,
    NetworkConfig,
    RunConfig,
    SearchConfig,
)
from eagleeye_hf.commands import evaluate, export, finetune, inspect, prune, push, report, search, study
from eagleeye_hf.configs import Within, annotations_of, check_fields, flat_dict
from eagleeye_hf.runs.arguments import RUN_FILE, parse_config, settings_text

COMMANDS = [evaluate, export, finetune, inspect, prune, push, report, search, study]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FinetuneConfig(epochs=1.5), "`epochs` is an integer, at least 0; got 1.5"),
        (lambda: FinetuneConfig(epochs=True), "`epochs` is an integer, at least 0; got True"),
        (lambda: FinetuneConfig(temperature=float("inf")), "`temperature` is a number, above 0; got inf"),
        (lambda: FinetuneConfig(lr=float("nan")), "`lr` is a number, above 0; got nan"),
        (lambda: FinetuneConfig(warmup=1), r"`warmup` is a number, in \[0, 1\); got 1"),
        (lambda: FinetuneConfig(schedule="linear"), "`schedule` is one of cosine, step; got 'linear'"),
        (lambda: FinetuneConfig(ema="0.9"), r"`ema` is a number, in \[0, 1\); got '0.9'"),
        (lambda: FinetuneConfig(compile=1), "`compile` is true or false; got 1"),
        (lambda: FinetuneConfig(optimizer="sgdm"), "`optimizer=sgdm` is not known to timm"),
        (lambda: FinetuneConfig(tracker="diary"), "`tracker=diary` is unknown; choose one of"),
        (lambda: SearchConfig(macs="0,5"), "`macs` is a fraction .* got 0,5"),
        (lambda: SearchConfig(divisor=0), "`divisor` is an integer, at least 1 or one of auto; got 0"),
        (lambda: SearchConfig(max_ratio=1), r"`max_ratio` is a number, in \(0, 1\); got 1"),
        (lambda: HeldOutConfig(holdout_images=-1), "`holdout_images` is an integer, at least 0 or left out; got -1"),
        (lambda: DatasetConfig(num_workers=-1), "`num_workers` is an integer, at least 0; got -1"),
        (lambda: DatasetConfig(label_names="cat"), "`label_names` is a list, of which each is a text or left out"),
        (lambda: DatasetConfig(dataset=""), "`dataset` is a Hub name or a folder"),
        (lambda: AugmentationConfig(augment="rnd-m9"), "`augment=rnd-m9` is not understood by timm"),
        (lambda: AdaptConfig(adapt_lr=0), "`adapt_lr` is a number, above 0 or left out; got 0"),
        (lambda: RunConfig(network=NetworkConfig(model="resnet18"), seed=-1), "`seed` is an integer, at least 0"),
    ],
)
def test_a_config_that_exists_is_valid(make, message):
    with pytest.raises(EagleEyeError, match=message):
        make()


def test_a_pair_takes_each_of_its_kinds():
    @dataclass(frozen=True, kw_only=True)
    class Sized:
        sizes: tuple[tuple[int, float], ...] = ()
        names: tuple[str, ...] = ()

        def __post_init__(self) -> None:
            check_fields(self)

    Sized(sizes=((16, 0.25), (24, 0.5)), names=("a",))
    for wrong in ((16, 0.25), ((0.25, 16),), ((16, 0.25, 3),), ((16,),)):
        with pytest.raises(EagleEyeError, match="a list, of which each is a pair of an integer and a number"):
            Sized(sizes=wrong)


@pytest.mark.parametrize(("interval", "inside", "outside"), [("[0, 1)", (0, 0.5), (-0.1, 1)), ("(0, 1]", (1,), (0, 2))])
def test_intervals_are_what_mathematics_writes(interval, inside, outside):
    assert all(map(Within(interval).holds, inside))
    assert not any(map(Within(interval).holds, outside))


def settings_of(config_class) -> list[tuple[type, str]]:
    """The class that has each setting, and its name."""
    found = []
    for name, annotation in annotations_of(config_class).items():
        found += settings_of(annotation) if is_dataclass(annotation) else [(config_class, name)]
    return found


@pytest.mark.parametrize("command", [*COMMANDS, None], ids=lambda c: c.__name__.split(".")[-1] if c else "compress")
def test_every_setting_is_a_flag_of_its_own(command):
    names = [name for _, name in settings_of(command.Config if command else RunConfig)]
    assert len(names) == len(set(names))


def test_one_spelling_means_one_thing():
    """A flag that several commands have stands in one class; but for what a command writes, and how."""
    places: dict[str, set] = {}
    for config in [RunConfig, *(command.Config for command in COMMANDS)]:
        for place, name in settings_of(config):
            base = next(c for c in reversed(place.__mro__) if name in getattr(c, "__annotations__", {}))
            places.setdefault(name, set()).add(base)
    apart = {name for name, classes in places.items() if len(classes) > 1}
    assert apart <= {"output", "seed", "strategy", "batch_size", "image_size", "license"}


@pytest.mark.parametrize("command", [*COMMANDS, None], ids=lambda c: c.__name__.split(".")[-1] if c else "compress")
def test_every_setting_is_explained_under_its_name(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    config_class = command.Config if command else RunConfig
    with pytest.raises(SystemExit) as stop:
        parse_config(config_class, ["--help"], "", "eagleeye")
    assert stop.value.code == 0
    told = capsys.readouterr().out
    for place, name in settings_of(config_class):
        assert f"--{name.replace('_', '-')}" in told or name.upper() in told
        written = [base for base in place.__mro__ if name in getattr(base, "__annotations__", {})][-1]
        body = ast.parse(getsource(written)).body[0].body
        at = next(i for i, node in enumerate(body) if isinstance(node, ast.AnnAssign) and node.target.id == name)
        assert isinstance(body[at + 1], ast.Expr), f"{written.__name__}.{name} has no text"
        assert isinstance(body[at + 1].value, ast.Constant)
    text = " " * 28
    for line, after in itertools.pairwise(told.splitlines()):  # the source's lines are no lines of the help
        if line.startswith(text) and after.startswith(text) and line.strip() and after.strip():
            assert len(line.rstrip()) + 1 + len(after.split()[0]) >= 99, line


def test_a_file_of_settings_starts_the_same_run(tmp_path):
    words = ["resnet18", "--macs", "0.5", "300M", "--no-hflip", "--label-names", "cat", "dog", "--lr", "0.1"]
    config = parse_config(RunConfig, words, "", "eagleeye")
    (tmp_path / RUN_FILE).write_text(settings_text(config))
    file = tmp_path / RUN_FILE
    assert json.loads(json.dumps(yaml.safe_load(file.read_text()))) == flat_dict(config)
    assert parse_config(RunConfig, ["--config", str(file)], "", "eagleeye") == config
    changed = parse_config(RunConfig, [f"--config={file}", "--lr", "0.2", "--hflip"], "", "eagleeye")
    expected = replace(config, finetune=replace(config.finetune, lr=0.2), augmentation=AugmentationConfig())
    assert changed == expected
    assert parse_config(RunConfig, ["resnet50", "--config", str(file)], "", "eagleeye").network.model == "resnet50"


@pytest.mark.parametrize("several", [("26.5M", "12.1M"), [0.5, 0.3]])
def test_several_budgets_may_be_a_default(several, capsys):
    @dataclass(frozen=True, kw_only=True)
    class Config(RunConfig):
        search: SearchConfig = SearchConfig(macs=several)

    with pytest.raises(SystemExit, match="0"):
        parse_config(Config, ["--help"], "", "recipe")
    assert "--macs NUMBER [NUMBER ...]" in capsys.readouterr().out
    assert parse_config(Config, ["resnet18"], "", "recipe").search.macs == tuple(several)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: resnet18", "`config` names `modle`, which is no setting here; did you mean `model`?"),
        ("model: resnet18\nlr: fast", "`lr` is a number, above 0; got 'fast'"),
        ("model: resnet18\nepochs: 1.5", "`epochs` is an integer, at least 0; got 1.5"),
        ("model: 5", "`model` is a text; got 5"),
        ("- resnet18", "holds no settings"),
        ("a: [", "can't be read"),
        ("lr: 0.1", "`model` must be given"),
    ],
)
def test_a_bad_file_of_settings_is_refused(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(EagleEyeError) as error:
        parse_config(RunConfig, ["--config", str(tmp_path / "run.yaml")], "", "eagleeye")
    assert message in str(error.value)


def test_configs_are_public():
    public = {name for name in eagleeye_hf.__all__ if name.endswith("Config")}
    inside = {type(field.default).__name__ for field in fields(RunConfig) if is_dataclass(field.default)}
    assert inside <= public
