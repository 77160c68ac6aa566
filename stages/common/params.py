"""Reads params.yaml into frozen dataclasses; anything wrong in it is one sentence per mistake.

pydantic checks; this module words its findings the way the project does: which key, what is
allowed, what was received, what to do.
"""

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass as _pydantic_dataclass
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.tag import Tag

from stages.common.run import UserError

PARAMS_FILE = Path("params.yaml")

# Every type carries the phrase that its errors use: "expected <description>, received …".
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
NonNegativeFloat = Annotated[
    float, Field(ge=0, allow_inf_nan=False, description="a number of 0 or more")
]
OpenFraction = Annotated[float, Field(gt=0, lt=1, description="a fraction above 0 and below 1")]
RateBelowOne = Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1")]
PositiveInt = Annotated[int, Field(ge=1, description="a whole number of 1 or more")]
NonNegativeInt = Annotated[int, Field(ge=0, description="a whole number of 0 or more")]
Text = Annotated[str, Field(min_length=1, description="a text that is not empty")]
Flag = Annotated[bool, Field(description="true or false")]
Seed = Annotated[int, Field(ge=0, lt=2**31, description="a whole number from 0 to 2147483647")]

params_dataclass = _pydantic_dataclass(
    frozen=True, kw_only=True, config=pydantic.ConfigDict(extra="forbid", strict=True)
)

T = TypeVar("T")


@params_dataclass
class _TopLevel:
    """What belongs to no section."""

    seed: Seed


def nearest(word: str, candidates) -> str:
    """`; did you mean 'x'?` for the candidates that look like a misspelt word, else nothing."""
    matches = difflib.get_close_matches(
        word, [str(candidate) for candidate in candidates], n=3, cutoff=0.6
    )
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


class _Constructor(SafeConstructor):
    """Takes keys as texts, as DVC does: a class may be called `01`, `null` or `2024-01-31`."""

    def construct_mapping(self, node, deep=False):
        """The mapping; YAMLError where a key is there twice."""
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                key.ctag = Tag(suffix="tag:yaml.org,2002:str")
        return super().construct_mapping(node, deep)

    def check_mapping_key(self, node, key_node, mapping, key, value):
        """The library's own words speak of a setting of the library."""
        if key in mapping:
            raise ConstructorError(
                None, None, f"the key {key!r} is there twice", key_node.start_mark
            )
        return True


def parse(text: str) -> Any:
    """The value that a text in YAML 1.2 stands for, as DVC reads it; YAMLError where it is none."""
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _Constructor
    return reader.load(text)


def read(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """The whole file as nested dictionaries; UserError where it is absent or not YAML."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist in {Path.cwd()}; run from the project's folder"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected sections, received {content!r}")
    return content


def load(section: str, kind: type[T], path: Path = PARAMS_FILE) -> T:
    """One section of params.yaml as an instance of the dataclass `kind`."""
    return check(read(path), section, kind, source=str(path))


def load_seed() -> int:
    """The top-level `seed` of params.yaml."""
    return check_seed(read())


def check_seed(content: dict[str, Any], source: str = "params.yaml") -> int:
    """The value of `seed` in the whole content of a params file."""
    values = {"seed": content["seed"]} if "seed" in content else {}
    return _validate(pydantic.TypeAdapter(_TopLevel), values, source, "", _TopLevel).seed


def check(content: dict[str, Any], section: str, kind: type[T], source: str = "params.yaml") -> T:
    """A section of the whole content of a params file as an instance of `kind`."""
    if section not in content:
        raise UserError(f"{source}: the section '{section}' is missing; add it")
    values = content[section]
    if not isinstance(values, dict):
        raise UserError(f"{source}, {section}: expected keys and values, received {values!r}")
    return _validate(pydantic.TypeAdapter(kind), values, source, section, kind)


def _validate(adapter: pydantic.TypeAdapter, value, source: str, prefix: str, kind):
    try:
        # As JSON, since pydantic's strict Python mode takes no dictionary for a dataclass.
        return adapter.validate_json(json.dumps(value, default=str), strict=True)
    except pydantic.ValidationError as error:
        # A union reports a finding for each branch; the longest has the hint.
        sentences: dict[str, str] = {}
        for finding in error.errors():
            sentence = _sentence(finding, source, prefix, kind)
            key = sentence.split(":")[0]
            sentences[key] = max(sentences.get(key, ""), sentence, key=len)
        raise UserError("\n       ".join(sentences.values())) from None


def _sentence(finding: dict[str, Any], source: str, prefix: str, kind) -> str:
    owner, field = _locate(kind, finding["loc"])
    what, context = finding["type"], finding.get("ctx", {})
    *parents, last = finding["loc"] or ("",)
    # An unknown key may look like the name of a branch: `learning-rate`.
    unknown = what == "unexpected_keyword_argument"
    names = [str(part) for part in parents if not _is_union_branch(part)]
    names += [str(last)] if unknown or not _is_union_branch(last) else []
    key = ".".join(name for name in [prefix, *names] if name)
    received = finding["input"]
    if what == "missing":
        expected = f"; expected {field.description}" if field and field.description else ""
        return f"{source}, {key}: missing{expected}; add it"
    if unknown:
        allowed = sorted(owner.__pydantic_fields__) if owner else []
        return (
            f"{source}, {key}: unknown key; allowed are {', '.join(allowed)}"
            f"{nearest(names[-1], allowed)}"
        )
    if what == "value_error":
        # A check of several keys begins its text with the one that is at fault.
        at_fault, _, rest = str(context["error"]).partition(": ")
        if at_fault in getattr(owner, "__pydantic_fields__", {}):
            return f"{source}, {key}.{at_fault}: {rest}"
        return f"{source}, {key}: {context['error']}"
    if what == "literal_error":
        choices = context["expected"]
        allowed = choices.replace("'", "").replace(" or ", ", ").split(", ")
        expected = (field.description if field else None) or choices
        return (
            f"{source}, {key}: expected {expected}, received {received!r}"
            f"{nearest(str(received), allowed)}"
        )
    expected = field.description if field and field.description else finding["msg"].lower()
    return f"{source}, {key}: expected {expected}, received {received!r}{_hint(received)}"


def _hint(received) -> str:
    """What is to be done with a number in quotes."""
    if not isinstance(received, str):
        return ""
    if re.fullmatch(r"[-+]?(\d+|\d+\.\d*)", received):
        return f" (write {received}, without quotes)"
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", received):
        mantissa, exponent = received.lower().split("e")
        return f" (write {float(mantissa)}e{int(exponent)}, without quotes)"
    return ""


def _is_union_branch(part) -> bool:
    """pydantic appends the name of the branch of a union to the place of an error."""
    return isinstance(part, str) and (
        part in ("int", "float", "str", "bool", "dict") or "[" in part or "-" in part
    )


def _locate(kind, location):
    """The dataclass that holds the place of an error, and the field there (or None)."""
    owner, field = kind, None
    for part in location:
        fields = getattr(owner, "__pydantic_fields__", {})
        if part in fields:
            field = fields[part]
            annotation = field.annotation
            if hasattr(annotation, "__pydantic_fields__"):
                owner = annotation
        elif field is None or not _is_union_branch(part):
            field = None
    return owner, field
