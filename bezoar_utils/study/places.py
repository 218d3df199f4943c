"""YAML that remembers where each of its keys stands, so that an error can name the line. A key stands once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from . import files

Places = dict[tuple[str, ...], str]  # ("dpo", "beta") -> "mine.yaml line 4"


def read_yaml(path: Path) -> tuple[dict, Places]:
    """The mapping that a file holds, and the places of its keys. Raises ValueError, one line with file and line."""
    text = files.read_text(path)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        places = dict(_places(node, path.name, ()))  # before it is constructed, where the second of two equal keys wins
    except RecursionError:
        raise ValueError(f"{path.name}: not valid YAML: it holds itself") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}{_fault(error, text)}") from None
    try:
        data = loader.construct_document(node) if node else {}
    except Exception as error:  # a date or a tag that cannot be raises whatever Python does
        raise ValueError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} line 1: must be a mapping of keys, got {type(data).__name__}")
    return data, places


def _fault(error: Any, text: str) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        sign = f"the sign U+{ord(text[error.position]):04X} is not allowed"
        return f" line {text.count(chr(10), 0, error.position) + 1}: not valid YAML: {sign}"
    begun = f" (begun in line {error.context_mark.line + 1})" if error.context_mark else ""
    return f" line {error.problem_mark.line + 1}: not valid YAML: {error.problem}{begun}"


def _places(node, file: str, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield (*above, str(number)), f"{file} line {item.start_mark.line + 1}"
            yield from _places(item, file, (*above, str(number)))
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        line, name = key.start_mark.line + 1, key.value
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{file} line {line}: {'.'.join(above)}: YAML reads braces as keys: put the text into quotes")
        if name in lines:
            raise ValueError(f"{file} line {line}: duplicate key {name}, first in line {lines[name]}")
        if key.tag.rpartition(":")[2] not in ("str", "merge"):
            raise ValueError(f"{file} line {line}: YAML does not read the key {name!r} as text: put it into quotes")
        lines[name] = line
        inner = above if name == "<<" else (*above, name)
        yield inner, f"{file} line {line}"
        yield from _places(value, file, inner)
