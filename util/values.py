"""Values of a config: YAML text to plain values, and plain values to the type and bounds that a key states."""

import re
import reprlib
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from util.common import Mistake


def convert(value: Any, kind: Any) -> Any:
    """`value` as the annotated type `kind`, or Mistake with what was expected.

    YAML 1.1 reads `1e-2` as a string, so numbers in strings are accepted. 0 and 1 are False and True, as in the original.
    """
    if get_origin(kind) in (Union, UnionType):
        if NoneType in get_args(kind) and (value is None or isinstance(value, str) and value.strip() in ("", "None")):
            return None
        *others, last = (k for k in get_args(kind) if k is not NoneType)
        for other in others:
            with suppress(Mistake):
                return convert(value, other)
        try:
            return convert(value, last)  # whose error is the one to show
        except Mistake as error:
            also = "True, False or " if bool in others else ""
            raise Mistake(str(error).replace("expected ", f"expected {also}", 1)) from None
    if get_origin(kind) is Annotated:
        kind, interval = get_args(kind)
        value = convert(value, kind)
        if interval != "path" and not _inside(value, interval):
            raise Mistake(f"{shown(value)} must be in {interval}")
        return value
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            same = value.strip() == str(choice) if isinstance(value, str) else value == choice and not isinstance(value, bool)
            if same:
                return choice
        raise Mistake(f"{shown(value)} is not one of {', '.join(map(str, get_args(kind)))}")
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        if isinstance(value, str) and "," in value and str not in (item := get_args(kind)[0], *get_args(item)[:1]):
            raise Mistake(f"expected a list in brackets, such as [{value.strip(' ()[]')}], not {shown(value)}")
        return tuple(convert(item, get_args(kind)[0]) for item in items)
    if kind is bool and isinstance(value, bool | int) and value in (0, 1):
        return bool(value)
    if kind is str and isinstance(value, str) and value.strip() and "\0" not in value:
        return value
    if kind is dict and isinstance(value, dict):
        return _plain(value)
    if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            if isinstance(value, str) and "_" in value:  # a number for Python only
                raise ValueError
            number = value if isinstance(value, int) else float(value)
            if kind is float or isinstance(number, int) or number.is_integer():
                return kind(number)
    expected = {str: "text", bool: "True or False", dict: "`name: value` pairs", int: "a whole number", float: "a number"}[kind]
    raise Mistake(f"expected {expected}, not {shown(value)}" + (" (this key cannot be empty)" if value in (None, "") else ""))


def _inside(number, interval) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    return above and (number < high if interval[-1] == ")" else number <= high)


def _plain(value: dict) -> dict:
    """The mapping, if it holds only text, finite numbers, True, False, lists and mappings; at most 10000 of them."""

    def parts(item):
        yield item
        for part in item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ():
            yield from parts(part)

    for count, item in enumerate(parts(value)):
        if count == 10000:
            raise Mistake("more than 10000 values")
        finite = not isinstance(item, int | float) or abs(item) < 2**63
        if not finite or not isinstance(item, str | int | float | dict | list | tuple | NoneType):
            raise Mistake(f"{shown(item)} is neither text nor a finite number")
    return value


def shown(value) -> str:
    """A value in a message, shortened."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 80, 80
    try:
        return short.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


class _Loader(yaml.SafeLoader):
    """Runs no code. Equal keys in one mapping are an error (PyYAML keeps the last), keys are text, nesting is limited."""

    def __init__(self, text):
        super().__init__(text)
        self.open = []  # anchor or None of each node around the current one

    def compose_node(self, parent, index):
        event = self.peek_event()
        if len(self.open) > 50 or isinstance(event, yaml.AliasEvent) and event.anchor in self.open:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)
        self.open.append(event.anchor)
        node = super().compose_node(parent, index)
        self.open.pop()
        return node

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"{key.value}: this key stands twice; remove one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return node

    def construct_yaml_int(self, node):
        """YAML 1.1 has octal numbers, 0100 for 64, and sexagesimal ones, 1:30 for 90: here the first are decimal, and the
        second text."""
        text = self.construct_scalar(node)
        if ":" in text:
            return text
        return int(text) if re.fullmatch("[-+]?0[0-9_]+", text) else super().construct_yaml_int(node)

    def construct_yaml_float(self, node):
        text = self.construct_scalar(node)
        return text if ":" in text else super().construct_yaml_float(node)

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError) as error:  # of PyYAML's constructors: `2024-13-45`
            raise yaml.MarkedYAMLError(problem=f"cannot be read ({error})", problem_mark=node.start_mark) from None


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", getattr(_Loader, f"construct_yaml_{_kind}"))


def read_config_text(path) -> str:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise Mistake(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Mistake(f"{path}: line {line}: the bytes are not UTF-8; save the file as UTF-8") from None


def parse_yaml(text, shown_as):
    try:
        return yaml.load(text, _Loader)  # noqa: S506, a SafeLoader
    except yaml.MarkedYAMLError as error:
        no_colon = error.problem == "could not find expected ':'"  # noticed at the next line
        mark = error.context_mark if no_colon and error.context_mark else error.problem_mark
        line, problem = mark.line + 1 if mark else 1, error.problem or error.context
    except yaml.reader.ReaderError as error:
        line, problem = text[: error.position].count("\n") + 1, f"the character {chr(error.character)!r} is not allowed"
    raise Mistake(f"{shown_as}: line {line}: {problem}")
