"""Records of arrays, [seeds]: from their JSON, and the same function of all of their arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from stages.cli.settings_file import JsonObject

Record = TypeVar("Record")


def from_json(saved: JsonObject, kind: type[Record]) -> Record:
    """A dataclass from its JSON. Arrays are of int64 where their annotation says integers, else of float64, with NaN
    for null."""

    def array(annotation: object, values: list[float | None]) -> NDArray[np.number]:
        [number] = get_args(get_args(annotation)[1])
        return np.array(values, np.int64 if issubclass(number, np.integer) else np.float64)

    return msgspec.convert(saved, kind, dec_hook=array, str_keys=True)


def map_arrays(function: Callable[..., np.ndarray], *records: Any) -> Any:
    """A record with `function` of the records' arrays in place of each array; all else is as in the last record.

    Args:
        records: of one structure: dataclasses, dicts and lists of each other and of arrays.

    Raises:
        ValueError: lists of different lengths.
    """
    last = records[-1]
    if isinstance(last, np.ndarray):
        return function(*records)
    if dataclasses.is_dataclass(last) and not isinstance(last, type):
        return dataclasses.replace(last, **map_arrays(function, *map(vars, records)))
    if isinstance(last, dict):
        return {name: map_arrays(function, *(record[name] for record in records)) for name in last}
    if isinstance(last, list):
        return [map_arrays(function, *items) for items in zip(*records, strict=True)]
    return last
