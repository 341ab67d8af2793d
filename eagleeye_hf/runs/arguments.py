"""From a command line, and a file of settings, to a config; tyro makes the flags from its fields."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml
from tyro import _errors as events
from tyro import _strings as texts

from eagleeye_hf.configs import annotations_of, check_value, describe_type, flat_dict
from eagleeye_hf.errors import EagleEyeError
from eagleeye_hf.processes import is_main, leave_processes, watch_launcher
from eagleeye_hf.telling import warn

Config = TypeVar("Config")
CONFIG_FLAG = "--config"
RUN_FILE = "run.yaml"


class MissingArgumentError(EagleEyeError):
    """Something that has no default was not given."""


def parse_config(config_class: type[Config], arguments: Sequence[str], description: str, prog: str) -> Config:
    """Fill a dataclass from flags; those of the configs in it stand beside its own, and what has no default is
    positional.

    `--config FILE.yaml` gives values by the names of the flags, which other flags replace. `--help` ends the program.

    Raises:
        EagleEyeError: a flag or a value is wrong.
    """
    arguments, file = _take_config_file(list(arguments))
    for argument in arguments:
        name = argument.split("=")[0]
        if name.startswith("--") and "_" in name:
            raise EagleEyeError(f"unknown arguments: {name}; did you mean {name.replace('_', '-')}?")
    text = f"{inspect.cleandoc(description)}\n\n{CONFIG_FLAG} FILE.yaml reads settings from a file, as runs write them."
    parse = functools.partial(_parse, config_class, arguments, text, prog)
    if file is None:
        return parse(tyro.MISSING_NONPROP)
    settings = _read_settings(file)
    try:  # what is positional, from the command line or else from the file
        return parse(_instance_of(config_class, settings, positional=False))
    except MissingArgumentError:
        return parse(_instance_of(config_class, settings, positional=True))


def _parse(config_class: type[Config], arguments: Sequence[str], description: str, prog: str, default: Any) -> Config:
    known = [f"--{name.replace('_', '-')}" for name in _flags(config_class)]
    with events.on_parse_error(functools.partial(_refuse, arguments, known)), _whole_paragraphs():
        return tyro.cli(
            config_class,
            prog=prog,
            description=description,
            args=arguments,
            default=default,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs),
        )


@contextmanager
def _whole_paragraphs() -> Iterator[None]:
    """Help without the line breaks of its source: tyro keeps those before indented lines, as a field's text has."""
    join = texts.remove_single_line_breaks
    texts.remove_single_line_breaks = lambda helptext: "\n\n".join(
        " ".join(paragraph.split()) for paragraph in inspect.cleandoc(helptext).split("\n\n")
    )
    try:
        yield
    finally:
        texts.remove_single_line_breaks = join


def settings_text(config: Any) -> str:
    """The file that starts this run again."""
    return yaml.safe_dump(flat_dict(config), sort_keys=False)


def _take_config_file(arguments: list[str]) -> tuple[list[str], str | None]:
    for place, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if name == CONFIG_FLAG:
            taken = 1 if separator else 2
            value = value if separator else "".join(arguments[place + 1 : place + 2])
            if not value:
                raise EagleEyeError(f"`{CONFIG_FLAG}` needs a file, as the {RUN_FILE} that a run writes")
            return arguments[:place] + arguments[place + taken :], value
    return arguments, None


def _read_settings(file: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EagleEyeError(f"`config={file}` can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise EagleEyeError(f"`config={file}` holds no settings; they stand as `name: value`, a line each")
    return {str(name).replace("-", "_"): value for name, value in settings.items()}


def _instance_of(config_class: Any, settings: dict[str, Any], positional: bool) -> Any:
    """Defaults for tyro; what must be given and is not in the file is marked as missing.

    Args:
        positional: whether the file gives what must be given.
    """
    unused = dict(settings)
    instance = _fill(config_class, None, unused, positional)
    if unused:
        close = difflib.get_close_matches(next(iter(unused)), _flags(config_class), n=1)
        hint = f"; did you mean `{close[0]}`?" if close else ""
        raise EagleEyeError(f"`config` names `{next(iter(unused))}`, which is no setting here{hint}")
    return instance


def _fill(config_class: Any, start: Any, unused: dict[str, Any], positional: bool) -> Any:
    instance, annotations = object.__new__(config_class), annotations_of(config_class)
    for field in dataclasses.fields(config_class):
        annotation = annotations[field.name]
        value = field.default if start is None else getattr(start, field.name)
        if dataclasses.is_dataclass(annotation):
            value = _fill(annotation, None if value is dataclasses.MISSING else value, unused, positional)
        elif field.name in unused:
            given = check_value(field.name, unused.pop(field.name), annotation)
            value = given if positional or value is not dataclasses.MISSING else tyro.MISSING
        elif value is dataclasses.MISSING:
            value = tyro.MISSING
        object.__setattr__(instance, field.name, value)
    return instance


def _flags(config_class: Any) -> list[str]:
    names = []
    for name, annotation in annotations_of(config_class).items():
        names += _flags(annotation) if dataclasses.is_dataclass(annotation) else [name]
    return names


def _unknown(tokens: Sequence[str], known: Sequence[str]) -> str:
    close = difflib.get_close_matches(tokens[0].split("=")[0], known, n=1)
    return f"unknown arguments: {' '.join(tokens)}; {f'did you mean {close[0]}? ' if close else ''}see --help"


def _refuse(arguments: Sequence[str], known: Sequence[str], event: events.ParseErrorEvent) -> None:
    """One line instead of tyro's box."""
    if isinstance(event, events.MissingArgs):
        if event.unrecognized_tokens:
            raise EagleEyeError(_unknown(event.unrecognized_tokens, known))
        names = ", ".join(f"`{_flag(missing.arg)}`" for missing in event.missing_arguments)
        raise MissingArgumentError(f"{names} must be given; see --help")
    if isinstance(event, events.UnrecognizedArgs):
        raise EagleEyeError(_unknown(event.tokens, known))
    if isinstance(event, events.InvalidChoice):
        raise EagleEyeError(f"`{_flag(event.argument)}` is one of {', '.join(event.choices)}; got {event.value}")
    if isinstance(event, events.BadValue):
        raise EagleEyeError(f"`{_flag(event.argument)}` needs a value; see --help")
    if isinstance(event, events.InstantiationFailure):
        if event.argument is None:
            raise EagleEyeError(event.message)
        flag = _flag(event.argument)
        value = " ".join(arguments[arguments.index(flag) + 1 :][:1]) if flag in arguments else "that"
        raise EagleEyeError(f"`{flag}` is {describe_type(event.argument.field.type)}; got {value}")


def _flag(argument: Any) -> str:
    """How an argument is written on the command line."""
    return argument.field.intern_name if argument.is_positional() else argument.lowered.name_or_flags[-1]


def run_main(main: Callable[[Any], Any], parse: Callable[[], Any]) -> int:
    """Run and return the exit code: bad input and a disk that refuses are one line on the error stream, and code 2."""
    watch_launcher()
    shown = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        main(parse())
        leave_processes()
    except EagleEyeError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        if is_main():
            print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    except OSError as error:
        place = f"`{error.filename}`: " if error.filename else ""
        return _complain(f"{place}{error.strerror or error}. The same command goes on once that is mended.")
    finally:
        warnings.showwarning = shown
    return 0


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *place: Any, **others: Any) -> None:
    """Ours as all that is told; those of libraries as Python shows them."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        warn(str(message))
    else:
        print(warnings.formatwarning(message, category, filename, place[0] if place else 0), file=sys.stderr, end="")


def _complain(text: str) -> int:
    """All processes refuse the same input, and one says so; what goes wrong later, each says for itself."""
    text = " ".join(text.split())
    if is_main():
        print(f"error: {text}", file=sys.stderr)
    elif "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized():
        print(f"error in process {os.environ['RANK']}: {text}", file=sys.stderr)
    return 2
