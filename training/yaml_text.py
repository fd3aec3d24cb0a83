"""YAML as settings are written in it: version 1.2, without the surprises of 1.1, and small.

In YAML 1.1, which PyYAML reads, `no` is false, `1:30` is 90, `017` is 15, `2026-11-27` is a date, `1e-3` is text, and
of two equal keys the first is lost. Here they are text, text, 17, text, a number and a mistake.
"""

import re
from typing import Any, ClassVar

import yaml
from jsonargparse import _loaders_dumpers, set_loader

MOST_DEPTH = 32  # lists and settings within one another
MOST_VALUES = 10_000  # aliases (`*name`) count as what they stand for

KINDS = {  # what a word without quotes is, by its first characters; anything else is text
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
TAGS = {f"tag:yaml.org,2002:{kind}" for kind in (*KINDS, "str", "seq", "map")}


class UnfitYAML(yaml.YAMLError):
    """Text that is YAML, but cannot be settings. The message is a sentence whose subject is the text."""


class Loader(yaml.SafeLoader):
    """PyYAML's loader with the kinds of YAML 1.2. Whole numbers are decimal."""

    yaml_implicit_resolvers: ClassVar = {}  # ty: ignore[incompatible-attribute-override]

    def construct_decimal(self, node: yaml.ScalarNode) -> int | str:
        """A whole number; text if it has more digits than Python converts."""
        text = str(self.construct_scalar(node))
        try:
            return int(text.replace("_", ""))
        except ValueError:
            return text


for kind, (pattern, first_characters) in KINDS.items():
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^({pattern})$"), first_characters)
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_decimal)


def parse_yaml(text: str) -> Any:
    """The value that a YAML text stands for: dicts, lists, texts, numbers, booleans and None.

    Raises:
        yaml.YAMLError: if it is not YAML.
        UnfitYAML: if a key is there twice, if it has other kinds of values, or too many or too deeply nested ones.
    """
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        check(node)
        return loader.construct_document(node)
    except RecursionError:
        raise UnfitYAML("is nested too deeply") from None
    finally:
        loader.dispose()


# jsonargparse reads values on the command line by both. It has no setting for the second, which reads simple values.
set_loader("yaml", parse_yaml, exceptions=(yaml.YAMLError,))
_loaders_dumpers.yaml_default_loader = Loader  # ty: ignore[invalid-assignment]


def check(root: yaml.Node) -> None:
    """Raise an UnfitYAML if a key is there twice, or the values are too many, too deeply nested or of other kinds."""
    lines: dict[str, int] = {}  # of each setting, by its dotted name
    count = 0
    nodes = [(root, "", 0)]
    while nodes:
        node, prefix, depth = nodes.pop()
        count += 1
        if count > MOST_VALUES:
            raise UnfitYAML(f"has more than {MOST_VALUES:,} values")
        if depth > MOST_DEPTH:
            raise UnfitYAML("is nested too deeply")
        if node.tag not in TAGS:
            raise UnfitYAML(f"has the tag {node.tag} in line {line_of(node)}; allowed: none")

        if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
            raise UnfitYAML(f"has a null character in line {line_of(node)}")
        if isinstance(node, yaml.SequenceNode):
            nodes += [(item, f"{prefix}{i}.", depth + 1) for i, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = f"{prefix}{key.value}"
                note_line(lines, name, line_of(key))
                nodes.append((value, f"{name}.", depth + 1))


def line_of(node: yaml.Node) -> int:
    """The line in which a value begins, from 1."""
    assert node.start_mark is not None
    return node.start_mark.line + 1


def note_line(lines: dict[str, int], name: str, line: int) -> None:
    """Note in which line a setting is. Raise an UnfitYAML if it is there already; dashes and underscores are alike."""
    name = name.replace("-", "_")
    if name in lines:
        first, second = sorted((lines[name], line))
        where = f"in line {first}" if first == second else f"in lines {first} and {second}"
        raise UnfitYAML(f"has {name} twice, {where}")
    lines[name] = line
