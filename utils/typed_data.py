"""Plain data (YAML, checkpoints) as dataclasses, with every key and type checked. It knows no particular dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

ConfigT = TypeVar("ConfigT")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says which key, and what to write instead."""


def config_from_dict(cls: type[ConfigT], data: object, where: str = "") -> ConfigT:
    """Build a configuration dataclass from plain data, checking every key and type.

    Raises ConfigError naming the key (and the nearest valid one), what was given and what was expected.
    """
    label = where or cls.__name__
    if not isinstance(data, dict):
        raise ConfigError(f"{label}: expected a mapping, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"{label}: unknown key {key!r}{hint}")
        values[key] = _coerce(hints[key], value, f"{label}.{key}")
    return cls(**values)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain data (dicts, lists, numbers, strings) of a configuration dataclass, for YAML and checkpoints."""
    return dataclasses.asdict(config)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises ConfigError for a missing, unreadable or non-mapping file."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, found {type(data).__name__}")
    return data


def load_config(cls: type[ConfigT], path: str | Path) -> ConfigT:
    """Read a YAML file into a configuration dataclass; see `config_from_dict` for the errors."""
    return config_from_dict(cls, load_yaml(path), where=str(path))


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Check value against a type hint, converting int → float and nested mappings → dataclasses."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return config_from_dict(hint, value, where)
    if origin is Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            hint_text = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}{hint_text}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(args, value, where)
    if origin is list and isinstance(value, (list, tuple)):
        return [_coerce(args[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {_coerce(args[0], k, where): _coerce(args[1], v, f"{where}[{k}]") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {_hint_name(hint)}, found {value!r}")
    return value


def _coerce_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    for option in options:
        try:
            return _coerce(option, value, where)
        except ConfigError:
            continue
    expected = " or ".join(_hint_name(option) for option in options)
    raise ConfigError(f"{where}: expected {expected}, found {value!r}")


def _hint_name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
