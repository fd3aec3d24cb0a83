"""The command line of every program here: jsonargparse, but every mistake is reported, not only the first."""

import json
import os
import sys
import time
from argparse import SUPPRESS, Action, HelpFormatter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import partial
from types import NoneType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace, set_dumper

from training.launcher import is_launched
from training.reading import (
    SECTION,
    Flag,
    Reading,
    allowed_by,
    find_actions,
    in_words,
    is_section,
    kind_of,
    load_section,
    split_into_flags,
    takes_null,
    underscored,
)
from utils.errors import Mistake, UserError, as_typed
from utils.terminal import print_error, say

T = TypeVar("T")

# What --print_config prints: ASCII only, so that it is the same on every terminal, and harmless.
set_dumper("yaml", partial(yaml.safe_dump, sort_keys=False))


class Help(DefaultHelpFormatter):
    """Help texts that end with what a value may be, in words, and its default, as both are typed."""

    def _get_help_string(self, action: Action) -> str:
        if is_section(action):
            return str(action.help) if isinstance(action, ActionConfigFile) else SECTION
        notes = []
        if kind_of(action) is not None:
            notes.append(in_words(kind_of(action)))
        default_is_null = action.default is None and takes_null(action)  # a flag has no null: it is given or not
        if action.option_strings and (default_is_null or action.default not in (None, SUPPRESS, "")):
            notes.append(f"default: {as_typed(action.default)}")
        return f"{action.help} ({', '.join(notes)})" if notes else str(action.help)


class Parser(ArgumentParser):
    """A parser that reports every mistake as a line on stderr and ends with exit code 2.

    Names of flags may be typed with dashes or underscores, and text is taken as it is typed. Flags replace what is in
    config files, wherever they are on the command line.

    Args:
        build: makes the program's settings from values by name, for example a dataclass, and raises a UserError if
            they do not fit together.
        rests_on: for a setting, the setting or section ("model.") that cannot be judged while its value is not known.
        options: those of jsonargparse.
    """

    def __init__(
        self,
        *,
        build: Callable[[dict[str, Any]], Any] = dict,
        rests_on: Mapping[str, str] | None = None,
        **options,
    ):
        self.build = build
        self.rests_on = rests_on or {}
        self.inherited: dict[str, Any] = {}
        options.setdefault("formatter_class", Help)
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, *rest, **options) -> Namespace:
        """Parse a command line, by default that of the process."""
        self.take_text_as_typed()
        flags = split_into_flags(sys.argv[1:] if args is None else args)
        # Flags replace what is in config files. Words before the first flag stay first: they belong to no flag.
        flags = sorted(flags, key=lambda flag: flag.name not in ("", "config"))
        self.words = [word for flag in flags for word in self.spell(flag)]
        try:
            words = [word for flag in flags for word in self.spell_with_settings(flag)]
        except UserError:
            self.error("a file of settings cannot be read")
        return super().parse_args(words, *rest, **options)

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """What is given on a command line and in its config files, by name, apart from what does not fit."""
        self.take_text_as_typed()
        reading = Reading(self)
        reading.read_command_line(list(argv))
        return reading.values

    def inherit(self, settings: dict[str, Any]) -> None:
        """Take these settings, by name, where none are given."""
        self.inherited = settings
        self.set_defaults(settings)

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The help, without the backspace by which jsonargparse removes a space from --print_config [=flags]."""
        return super().format_help(formatter).replace(" \b", "")

    def take_text_as_typed(self) -> None:
        """Give flags of type `str | None` the type str, because jsonargparse reads the former as YAML.

        So `--run_dir='#1'` is no comment. A null in a config file is allowed for every type.
        """
        actions: list[Any] = self._actions
        for action in actions:
            if set(get_args(kind_of(action))) == {str, NoneType}:
                action._typehint = str
                action.takes_null = True

    def spell(self, flag: Flag) -> list[str]:
        """The words of a flag, with dashes or underscores in its name as the parser has them."""
        action = find_actions(self).get(underscored(flag.name))
        if action is None:
            return flag.typed
        _, equals, value = flag.typed[0].partition("=")
        return [f"{action.option_strings[0]}{equals}{value}", *flag.typed[1:]]

    def spell_with_settings(self, flag: Flag) -> list[str]:
        """The words of a flag, with the settings themselves instead of a file that holds them.

        Raises:
            UserError: if there are no settings to read.
        """
        action = find_actions(self).get(underscored(flag.name))
        if action is None or not is_section(action) or not flag.words:
            return self.spell(flag)
        text, *rest = flag.words
        prefix = "" if flag.name == "config" else f"{flag.name}."
        settings = self.with_sections_read(load_section(text, flag.name), prefix)
        return [f"{action.option_strings[0]}={json.dumps(settings)}", *rest]

    def with_sections_read(self, settings: dict, prefix: str = "") -> dict:
        """Settings by name, with the settings of a section instead of a file that holds them.

        Raises:
            UserError: if a file cannot be read, or a value is null that must not be, which jsonargparse lets pass.
        """
        actions = find_actions(self)
        read = dict(settings)
        for inner_name, value in settings.items():
            name = f"{prefix}{inner_name}"
            action = actions.get(underscored(name))
            if action is None:
                continue
            if is_section(action) and isinstance(value, str):
                value = load_section(value, name)
            if value is None and not takes_null(action):
                raise UserError(Mistake(name, value, allowed_by(action)))
            read[inner_name] = self.with_sections_read(value, f"{name}.") if isinstance(value, dict) else value
        return read

    def build_from(self, values: Namespace) -> Any:
        """Build the program's settings from parsed values."""
        try:
            return self.build(vars(values.as_flat()))
        except UserError as error:
            reject(error.mistakes)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program. jsonargparse calls this with the first mistake that it finds."""
        reading = Reading(self)
        reading.read_command_line(self.words)
        mistakes = reading.mistakes + self.certain_mistakes(reading)
        reject(mistakes or [message])

    def certain_mistakes(self, reading: Reading) -> list[Mistake | str]:
        """What is wrong with the values that could be read, apart from what may be due to those that could not."""
        if reading.missing:
            return []
        try:
            self.build(self.inherited | reading.values)
        except UserError as error:
            in_doubt = {self.rests_on.get(name, name) for name in reading.in_doubt}
            return [each for each in error.mistakes if not is_about(each, in_doubt)]
        return []


def parse_as(kind: type[T], argv: list[str] | None, prog: str, description: str | None) -> T:
    """Read a command line as an object of a dataclass.

    Its fields are the flags, and the docstrings below them are the help texts. A field without a default is a
    positional argument, and a bool is a flag without a value.
    """
    parser = Parser(prog=prog, description=description, build=lambda values: kind(**values))
    hints = get_type_hints(kind)
    helps = {each.arg_name: each.description for each in docstring_parser.parse_from_object(kind).params}
    for each in fields(kind):  # ty: ignore[invalid-argument-type]
        flag = "--" + each.name.replace("_", "-")
        hint = without_null(hints[each.name])
        if each.default is MISSING:
            parser.add_argument(each.name, type=hint, help=helps[each.name])
        elif hint is bool:
            parser.add_argument(flag, action="store_true", help=helps[each.name])
        else:
            parser.add_argument(flag, type=hint, default=each.default, help=helps[each.name])
    return parser.build_from(parser.parse_args(argv))


def is_about(mistake: Mistake | str, names: Iterable[str]) -> bool:
    """Whether a mistake is about one of the settings, or about a setting of one of the sections ("model.")."""
    if isinstance(mistake, str):
        return False
    return any(mistake.name == name or (name.endswith(".") and mistake.name.startswith(name)) for name in names)


def without_null(hint: Any) -> Any:
    """The type of a flag whose value is None if it is not given."""
    options = [option for option in get_args(hint) if option is not NoneType]
    return Union[tuple(options)] if NoneType in get_args(hint) else hint  # noqa: UP007


@contextmanager
def user_errors() -> Generator[None]:
    """End the program with a line for each mistake of the user, and exit code 2. Other exceptions pass through."""
    try:
        yield
    except UserError as error:
        reject(error.mistakes)


def reject(mistakes: Sequence[object], code: int = 2) -> NoReturn:
    """End the program because of mistakes that every process meets. Only the first one of a machine prints them."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(5)  # a launcher ends all processes when one has ended: the first one needs the time to print
        mistakes = []
    fail(*mistakes, code=code)


def fail(*messages: object, code: int = 2) -> NoReturn:
    """End the program with a line on stderr for each message, and an exit code: 2 if the user can fix the cause."""
    for message in messages:
        print_error(message)
    if messages and is_launched():
        say("a traceback that follows is the launcher's, and says nothing more", stream=sys.stderr)
    sys.exit(code)
