"""The command line of every program here: all that is wrong with one is told at once, in a line for each mistake."""

import json
import os
import sys
import time
from argparse import Action
from contextlib import contextmanager
from difflib import SequenceMatcher
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TextIO, Union, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveInt
from tqdm import tqdm  # whose `write` keeps clear of a bar

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
WORDS |= {PositiveInt: "a whole number, 1 or above", NonNegativeInt: "a whole number, 0 or above"}


class Parser(ArgumentParser):
    """A parser whose errors are a line each on stderr, and exit code 2."""

    def error(self, message, ex=None) -> NoReturn:
        reject(self.mistakes() or [message])

    def mistakes(self) -> list[str]:
        """What is wrong with the arguments that were to be parsed, a line for each that does not fit."""
        return [line for _, line in Reading(self).mistakes]


class Reading:
    """The settings of a command line and of the config files that it names, each read by itself.

    Holds the `values` of those that fit, by name, and `mistakes`: for each other one the setting that was meant, and a
    line with its name, what it got and what is allowed.
    """

    def __init__(self, parser: Parser):
        self.values, self.mistakes = {}, []
        self.actions = {option.lstrip("-"): action for action in parser._actions for option in action.option_strings}
        positional = [action for action in parser._actions if not action.option_strings]
        loose = []  # words that belong to no flag
        for flag, *words in pieces(parser.args):
            name, equals, value = flag.removeprefix("--").partition("=")
            words = [value, *words] if equals else words
            alone = not name or (not equals and name in self.actions and self.actions[name].nargs == 0)
            taken = 0 if alone else 1 if positional else len(words)
            loose += words[taken:]
            if not alone:
                self.read(name, " ".join(words[:taken]) if words else ...)
        if self.mistakes:
            return
        for action in positional[len(loose) :]:
            self.mistakes.append((action.dest, f"{action.dest}: got nothing, allowed: {action.help}"))
        for word in loose[len(positional) :] if all(action.nargs is None for action in positional) else ():
            self.mistakes.append((word, f"{word}: belongs to no flag; allowed: --NAME=VALUE, see --help"))

    def read(self, name: str, value: Any) -> None:
        """Take a setting's value: text, what YAML made of it, or an ellipsis where a flag stands without one."""
        action = self.actions.get(name)
        if action is None:
            nearest = max(self.actions, key=lambda known: likeness(name, known))
            self.mistakes.append((self.actions[nearest].dest, f"{name}: no such setting; the nearest is {nearest}"))
            return
        try:
            if type_of(action) or action.choices or action.nargs == 0:
                self.values[action.dest] = typed(action, value)
            else:
                prefix = "" if isinstance(action, ActionConfigFile) else f"{name}."
                for inner, its_value in section(value).items():
                    self.read(f"{prefix}{inner}", its_value)
        except ValueError as error:
            got = "nothing" if value is ... else value if isinstance(value, str) else json.dumps(value, default=str)
            self.mistakes.append((action.dest, f"{name}: got {got}, {error}"))


def pieces(argv: list[str]) -> list[list[str]]:
    """A command line, cut before each flag. The first piece has none, and an empty word in its place."""
    cut = [[""]]
    for word in argv:
        if word.startswith("--"):
            cut.append([])
        cut[-1].append(word)
    return cut


def files_first(argv: list[str]) -> list[str]:
    """A command line with its `--config` before all else, so that a flag counts more than a file wherever it stands."""
    ordered = sorted(pieces(argv), key=lambda piece: piece[0].partition("=")[0] != "--config")
    return [word for piece in ordered for word in piece if word]


def likeness(name: str, known: str) -> float:
    """How much the last part of a name looks like that of a known one, or like its initials, and half the whole."""
    last, known_last = name.split(".")[-1], known.split(".")[-1]
    initials = "".join(word[:1] for word in known_last.split("_"))
    parts = max(SequenceMatcher(None, last, other).ratio() for other in (known_last, initials))
    return parts + SequenceMatcher(None, name, known).ratio() / 2


def type_of(action: Action) -> Any:
    """What type a flag's values have; None of one that has none, such as a config file."""
    return getattr(action, "_typehint", action.type)


def typed(action: Action, value: Any) -> Any:
    """A flag's value, as its type has it.

    Raises:
        ValueError: when it is none of that type; the message says what is allowed.
    """
    if action.nargs == 0:
        raise ValueError("allowed: no value")
    if action.choices is not None:
        if value not in action.choices:
            raise ValueError(f"allowed: {either(action.choices)}")
        return value
    hint = type_of(action)
    try:
        if value is ... or (value is None and NoneType not in get_args(hint)):  # which the library lets pass
            raise TypeError
        probe = ArgumentParser(exit_on_error=False)
        probe.add_argument("--value", type=hint)
        return probe.parse_object({"value": value}).value
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"allowed: {in_words(hint)}") from error


def section(value: Any) -> dict:
    """Settings by name, from YAML or the path of a YAML file.

    Raises:
        ValueError: when there are none; the message says why and what is allowed.
    """
    try:
        tree, reason = value, "which holds no settings"
        if isinstance(value, str):
            with Path(value).open(encoding="utf-8") as file:  # so that errors name it
                tree = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        tree, reason = None, f"which cannot be read ({getattr(error, 'strerror', error)})"
    except yaml.YAMLError as error:
        tree, reason = None, f"which is no YAML ({' '.join(str(error).split())})"
    if not isinstance(tree, dict):
        raise ValueError(f"{reason}, allowed: settings by name, or a YAML file of them")
    return tree


def in_words(hint: Any) -> str:
    """What a type allows, for people: `int | tuple[int, ...]` is a whole number or a list of them."""
    if get_origin(hint) is Literal:
        return either(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return either(map(in_words, get_args(hint)))
    if get_origin(hint) is tuple:
        first, *_, last = get_args(hint)
        return "a list of them" if last is ... else f"a list of {len(get_args(hint))}, each {in_words(first)}"
    return WORDS.get(hint, hint.__name__)


def either(options) -> str:
    """Options in a row, with an "or" before the last."""
    *others, last = map(str, options)
    return f"{', '.join(others)} or {last}" if others else last


@contextmanager
def user_errors():
    """End the program with one line, not a traceback, for what a user can mend while a run is being set up."""
    try:
        yield
    except (ValueError, OSError) as error:
        fail(error)


def reject(mistakes: list[str]) -> NoReturn:
    """End the program for what is wrong with its command line. All processes see it, the first of a machine tells."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(5)  # a launcher ends all when one is gone, which must not be before the first has spoken
        mistakes = []
    fail(*mistakes)


def fail(*messages: object, code: int = 2) -> NoReturn:
    """End the program: a line for each message on stderr, and an exit code, 2 for what a user can mend."""
    for message in messages:
        tqdm.write(f"{coloured('error:', 31, sys.stderr)} {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


def coloured(text: str, colour: int, stream: TextIO) -> str:
    """Text in one of the terminal's colours, an SGR code, where a stream is a terminal and NO_COLOR is not set."""
    return f"\033[1;{colour}m{text}\033[0m" if stream.isatty() and not os.environ.get("NO_COLOR") else text
