"""Finds all mistakes of a command line and of the config files that it names."""

import os
import re
from argparse import Action
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from training.yaml_text import UnfitYAML, parse_yaml
from utils.errors import Mistake, UserError, reading_errors
from utils.files import refuse_endless, user_path

WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    PositiveInt: "a whole number, 1 or above",
    NonNegativeInt: "a whole number, 0 or above",
    PositiveFloat: "a number above 0",
}
MOST_BYTES = 100_000  # in a file of settings
SECTION = "settings by name, or a YAML file of them"  # what is allowed as the value of a section


@dataclass(frozen=True)
class Flag:
    """A flag of a command line with its words: the one behind an equals sign, and those before the next flag."""

    typed: list[str]
    """the words as they are on the command line, the flag included"""
    name: str = ""
    """the flag without its dashes; empty for the words before the first flag"""
    has_equals: bool = False

    @property
    def words(self) -> list[str]:
        if not self.name:
            return self.typed
        first = self.typed[0].partition("=")[2]
        return [first, *self.typed[1:]] if self.has_equals else self.typed[1:]


def split_into_flags(argv: Iterable[str]) -> list[Flag]:
    """Divide a command line before each flag. The first part has no flag, and may be empty."""
    flags = [Flag([])]
    for word in argv:
        match = re.fullmatch(r"--([A-Za-z][\w.-]*)(=.*)?", word, re.DOTALL)
        if match is None:
            flags[-1].typed.append(word)
        else:
            flags.append(Flag([word], name=match[1], has_equals=match[2] is not None))
    return flags


class Reading:
    """The settings of a command line and of its config files, each read by itself.

    Attributes:
        values: the values that fit, by name. A later one replaces an earlier one.
        mistakes: what is wrong, in the order of reading.
        in_doubt: settings whose values are not known, since they do not fit or a misspelled name probably means them;
            a section has a dot at its end.
        missing: the positional arguments that were not given.
    """

    def __init__(self, parser: ArgumentParser):
        self.actions = find_actions(parser)
        self.positionals = [action for action in parser._actions if not action.option_strings]
        self.missing = list(self.positionals)
        self.values: dict[str, Any] = {}
        self.mistakes: list[Mistake | str] = []
        self.in_doubt: list[str] = []

    def read_command_line(self, argv: list[str]) -> None:
        """Read all words of a command line."""
        loose_words = []
        for flag in split_into_flags(argv):
            loose_words += self.read_flag(flag)
        loose_words = self.read_positionals(loose_words)

        if self.mistakes:
            return  # a word too many or too few may belong to the flag that is wrong
        for word in loose_words:
            self.mistakes.append(f"{word}: belongs to no flag; allowed: --NAME=VALUE, see --help")
        for action in self.missing:
            self.mistakes.append(Mistake(action.dest, "nothing", str(action.help)))

    def read_flag(self, flag: Flag) -> list[str]:
        """Read a flag with its value. Returns the words that do not belong to it."""
        if not flag.name:
            return flag.words
        action = self.actions.get(underscored(flag.name))
        if action is None:
            self.add_unknown(flag.name)
            return flag.words[1:] if self.positionals else []
        if action.nargs == 0:
            return self.read_switch(action, flag)

        # A flag takes one word. But several words in a program without positional arguments can only be a value that
        # is written wrongly (`--model.dim 128 256`), which the message then quotes in full.
        takes_all = action.nargs == "+" or not (self.positionals or flag.has_equals or kind_of(action) is str)
        count = len(flag.words) if takes_all else 1
        words = flag.words[:count]
        if not words:
            self.add_mistake(action, Mistake(flag.name, "nothing", allowed_by(action)))
        elif action.nargs == "+":
            self.read_list(action, words)
        else:
            self.read_value(flag.name, " ".join(words))
        return flag.words[count:]

    def read_switch(self, action: Action, flag: Flag) -> list[str]:
        """Read a flag that takes no value. Returns the words that do not belong to it."""
        if flag.has_equals:
            self.add_mistake(action, f"--{flag.name} takes no value")
            return []
        self.values[action.dest] = True
        return flag.words

    def read_positionals(self, words: list[str]) -> list[str]:
        """Give words to the positional arguments. Returns those that are left over."""
        while words and self.missing:
            action = self.missing.pop(0)
            count = len(words) if action.nargs == "+" else 1
            self.values[action.dest] = words[:count] if action.nargs == "+" else words[0]
            words = words[count:]
        return words

    def read_list(self, action: Action, words: list[str]) -> None:
        """Read a flag that takes one value or more."""
        values = []
        for word in words:
            try:
                values.append(typed(action, word))
            except ValueError:
                self.add_mistake(action, Mistake(action.dest, word, allowed_by(action)))
        self.values[action.dest] = values

    def read_value(self, name: str, value: Any) -> None:
        """Read the value of a setting, or those of a section: text from the command line, or what is in a file."""
        action = self.actions.get(underscored(name))
        if action is None:
            self.add_unknown(name)
        elif is_section(action):
            self.read_section(action, name, value)
        else:
            try:
                self.values[action.dest] = typed(action, value)
            except ValueError:
                has_no_quotes = kind_of(action) is str and isinstance(value, int | float)
                allowed = "text, in quotes" if has_no_quotes else allowed_by(action)
                self.add_mistake(action, Mistake(name, value, allowed))

    def read_section(self, action: Action, name: str, value: Any) -> None:
        """Read settings by name, or a YAML file of them. Those of --config belong to any section."""
        settings = value
        if isinstance(value, str):
            try:
                settings = load_section(value, name)
            except UserError as error:
                for mistake in error.mistakes:
                    self.add_mistake(action, mistake)
                return
        if not isinstance(settings, dict):
            self.add_mistake(action, Mistake(name, value, SECTION))
            return
        prefix = "" if isinstance(action, ActionConfigFile) else f"{name}."
        for inner_name, inner_value in settings.items():
            self.read_value(f"{prefix}{inner_name}", inner_value)

    def add_mistake(self, action: Action, mistake: Mistake | str) -> None:
        """Note a mistake, and the setting or section whose value is not known because of it."""
        self.mistakes.append(mistake)
        self.in_doubt.append(f"{action.dest}." if is_section(action) else action.dest)

    def add_unknown(self, name: str) -> None:
        """Note a name that does not exist, with the most similar one, which was probably meant."""
        nearest = max(self.actions, key=lambda known: similarity(underscored(name), known))
        self.add_mistake(self.actions[nearest], f"{name}: no such setting; the nearest is {nearest}")


def find_actions(parser: ArgumentParser) -> dict[str, Action]:
    """What argparse knows about each flag, by its name with underscores."""
    return {underscored(flag.lstrip("-")): each for each in parser._actions for flag in each.option_strings}


def underscored(name: str) -> str:
    """A flag's name as settings have it: --top-k and --top_k are the same."""
    return name.replace("-", "_")


def kind_of(action: Action) -> Any:
    """The type of a flag's value, or None: a switch has none, nor has a section."""
    return getattr(action, "_typehint", action.type)


def is_section(action: Action) -> bool:
    """Whether a flag takes settings by name."""
    return kind_of(action) is None and action.nargs is None and action.choices is None


def takes_null(action: Action) -> bool:
    """Whether a setting may be null. That of a text is noted beside its type, see `Parser.take_text_as_typed`."""
    return getattr(action, "takes_null", False) or NoneType in get_args(kind_of(action))


def typed(action: Action, value: Any) -> Any:
    """Convert a value to the type of a flag.

    Raises:
        ValueError: if it does not fit.
    """
    kind = kind_of(action)
    if action.choices is not None:
        if value in action.choices:
            return value
        raise ValueError(f"{value} is not among the choices")
    if value is None and not takes_null(action):
        raise ValueError("null does not fit")  # jsonargparse allows it for every type
    probe = ArgumentParser(exit_on_error=False)
    probe.add_argument("--value", type=kind)
    try:
        return probe.parse_object({"value": value}).value
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"{value} does not fit") from error


def allowed_by(action: Action) -> str:
    """What values a flag takes, in words."""
    if action.choices is not None:
        return join_with_or(action.choices)
    return SECTION if is_section(action) else in_words(kind_of(action))


def in_words(kind: Any) -> str:
    """What values a type has: those of `int | tuple[int, ...]` are "a whole number or a list of them"."""
    options = get_args(kind)
    if get_origin(kind) is Literal:
        return join_with_or(options)
    if get_origin(kind) in (Union, UnionType):
        return join_with_or("a list of them" if has_any_length(option) else in_words(option) for option in options)
    if has_any_length(kind):
        return f"a list, each {in_words(options[0])}"
    if get_origin(kind) is tuple:
        return f"a list of {len(options)}, each {in_words(options[0])}"
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def has_any_length(kind: Any) -> bool:
    """Whether a type is a tuple of any length, such as tuple[int, ...]."""
    return get_origin(kind) is tuple and get_args(kind)[-1] is ...


def join_with_or(options: Iterable[Any]) -> str:
    """The options separated by commas, with "or" before the last."""
    *others, last = map(str, options)
    return f"{', '.join(others)} or {last}" if others else last


def load_section(text: str, name: str) -> dict:
    """Settings by name from what is typed for a section: a YAML file, or the settings themselves (`{dim: 64}`).

    Raises:
        UserError: as `load_settings` does.
    """
    if os.path.exists(user_path(text)) or "{" not in text:
        return load_settings(user_path(text), name)
    return parse_settings(text, name, text)


def load_settings(path: Path, name: str) -> dict:
    """The settings in a YAML file. Errors name the flag or section that the file belongs to.

    Raises:
        UserError: if it cannot be read, is not YAML, holds no settings, or has one twice.
    """
    with reading_errors(name, path):
        refuse_endless(name, path)
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UserError(f"{name}: {path} has {size:,} bytes, allowed: at most {MOST_BYTES:,}")
        content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: {path} is no UTF-8 text (byte {error.start})") from error
    return parse_settings(text, name, str(path))


def parse_settings(text: str, name: str, source: str) -> dict:
    """The settings in a YAML text. Errors name the flag or section that it belongs to, and where it is from.

    Raises:
        UserError: if it is not YAML, holds no settings, or has one twice.
    """
    try:
        settings = parse_yaml(text)
    except UnfitYAML as error:
        raise UserError(f"{name}: {source} {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name}: {source} is not YAML ({where_and_why(error)})") from error
    if not isinstance(settings, dict):
        raise UserError(f"{name}: {source} holds no settings by name")
    return settings


def where_and_why(error: yaml.YAMLError) -> str:
    """What PyYAML found wrong, in one line without the text around it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        problem = str(error.problem).removeprefix("but ")
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
    return str(error).partition("\n")[0]


def similarity(name: str, known: str) -> float:
    """How similar two dotted names are, from 0 to 1.5.

    The last part counts most; it may also be given by its initials, as `lr` for `learning_rate`.
    """
    last = name.rpartition(".")[2]
    known_last = known.rpartition(".")[2]
    initials = "".join(word[:1] for word in known_last.split("_"))
    of_last = max(ratio(last, known_last), ratio(last, initials))
    return of_last + ratio(name, known) / 2


def ratio(one: str, other: str) -> float:
    """How much of two texts is the same, from 0 to 1."""
    return SequenceMatcher(None, one, other).ratio()
