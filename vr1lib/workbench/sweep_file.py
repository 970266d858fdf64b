"""A W&B sweep configuration as points: which values each run of a sweep gets, and the run's name.

The file is W&B's own format (`program`, `method`, `parameters`, `command`, `name`, `metric`, `run_cap`), so that `wandb
sweep FILE` takes it too. Grid and random give the points of W&B's own search code (the `sweeps` package, not to be
installed beside numpy 2): parameters in the order of their names, the last one fastest, and for random one uniform
number each, put through the distribution's quantile function. Our choice: that chance is seeded by the file's text, so
that a file always means the same points.
"""

import difflib
import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from vr1lib.records import RequestError
from vr1lib.workbench.params import parse_yaml, project_root

KEYS = {"program", "method", "parameters", "command", "name", "metric", "run_cap", "description", "project", "entity"}
FOR_THE_SERVER = {
    "early_terminate",
    "controller",
    "scheduler",
    "metrics",
    "job",
    "image_uri",
}  # W&B's keys beside these
ARGUMENTS = "${args_no_hyphens}"
LONGEST_NAME = 60
DISTRIBUTIONS = {  # and the keys they need; as W&B's schema has them
    "constant": {"value"},
    "categorical": {"values"},
    "categorical_w_probabilities": {"values", "probabilities"},
    "int_uniform": {"min", "max"},
    "uniform": {"min", "max"},
    "q_uniform": {"min", "max"},
    "log_uniform_values": {"min", "max"},
    "inv_log_uniform_values": {"min", "max"},
    "q_log_uniform_values": {"min", "max"},
    "normal": set(),
    "q_normal": set(),
    "log_normal": set(),
    "q_log_normal": set(),
}
FOR_GRID = {"constant", "categorical", "int_uniform", "q_uniform"}


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its name (outputs/STEM/NAME) and its values of the swept parameters."""

    name: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read: what is run (`command`, `vr1` left out, without the point's arguments) and its points."""

    path: Path
    text: str
    name: str
    command: list[str]
    metric: str | None
    points: list[Point]


def read_sweep(path: str | Path) -> Sweep:
    """Raises RequestError naming the file, the key and what is allowed."""
    found = Path(path) if Path(path).exists() else project_root() / path
    try:
        text = found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(file.name for file in (project_root() / "params/sweeps").glob("*.yaml"))) or "none yet"
        raise RequestError(f"{path}: cannot be read ({error}); files in params/sweeps: {known}") from None
    config = parse_yaml(text, str(path))
    if not isinstance(config, dict) or not config:
        raise RequestError(f"{path}: no `key: value` lines; see params/sweeps/ for examples")
    for key in config:
        if key in FOR_THE_SERVER:
            raise RequestError(f"{path}: {key} is done by W&B's server: wandb sweep {path}, then wandb agent SWEEP")
        if key not in KEYS:
            nearest = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.0)[0]
            raise RequestError(f"{path}: unknown key {key!r}; the nearest known key is {nearest!r}")
    name = config.get("name", found.stem)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", str(name)):
        raise RequestError(f"{path}: name = {name!r}; give at most 40 letters, digits, '.', '_' or '-'")
    metric = config.get("metric")
    if metric is not None and not (isinstance(metric, dict) and isinstance(metric.get("name"), str)):
        raise RequestError(f"{path}: metric = {metric!r}; give name (a key of docs/metrics.md) and goal")
    points = name_points(str(name), points_of(config, text, path))
    return Sweep(found, text, str(name), command_of(config, path), metric and metric["name"], points)


def command_of(config: Mapping[str, Any], path: str | Path) -> list[str]:
    """`command` without `vr1` and the arguments; without a command, `vr1 run` of the program."""
    command = config.get("command")
    if command is None:
        program = config.get("program")
        if not isinstance(program, str) or not program.endswith(".ipynb"):
            raise RequestError(f"{path}: program = {program!r}; give notebooks/STEM.ipynb, or a command")
        return ["run", Path(program).stem]
    example = f"[vr1, run, STEM, -f, FILE, {ARGUMENTS!r}]"
    if not isinstance(command, list) or command[:2] != ["vr1", "run"] or len(command) < 4:
        raise RequestError(f"{path}: command = {command!r}; give {example}")
    macros = [part for part in command if str(part).startswith("${")]
    if macros != [ARGUMENTS]:
        raise RequestError(f"{path}: command holds {macros}; of W&B's macros give {ARGUMENTS} alone: {example}")
    return [str(part) for part in command[1:] if part != ARGUMENTS]


# --------------------------------------------------------------------------------------------------------- the points


def points_of(config: Mapping[str, Any], text: str, path: str | Path) -> list[dict[str, Any]]:
    """The values of each point, by parameter."""
    method, cap, parameters = config.get("method"), config.get("run_cap"), config.get("parameters")
    if method == "bayes":
        raise RequestError(
            f"{path}: method: bayes asks W&B's server for each point: wandb sweep {path}, wandb agent ID"
        )
    if method not in ("grid", "random"):
        raise RequestError(f"{path}: method = {method!r}; give grid or random (bayes: wandb agent)")
    if cap is not None and (not isinstance(cap, int) or cap < 1):
        raise RequestError(f"{path}: run_cap = {cap!r}; give a whole number ≥ 1")
    if not isinstance(parameters, dict) or not parameters:
        raise RequestError(f"{path}: parameters = {parameters!r}; give KEY: {{values: […]}} lines")
    specs = {str(key): parameters[key] for key in sorted(parameters, key=str)}
    kinds = {key: distribution_of(key, spec, path) for key, spec in specs.items()}
    if method == "random":
        if cap is None:
            raise RequestError(f"{path}: method: random has no end of its own; give run_cap")
        chance = random.Random(seed_of(text))
        return [{key: quantile(kinds[key], specs[key], chance.uniform(0, 1)) for key in specs} for _ in range(cap)]
    for key, kind in kinds.items():
        if kind not in FOR_GRID:
            raise RequestError(f"{path}: parameters.{key} is {kind}, which a grid cannot walk; give values")
    every = itertools.product(*(grid_values(kinds[key], specs[key]) for key in specs))
    unlike = {json.dumps([whole(value) for value in values]): dict(zip(specs, values)) for values in every}
    return list(unlike.values())[:cap]


def whole(value: Any) -> Any:
    """2.0 and 2 are one value."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def seed_of(text: str) -> int:
    """The seed of a random sweep: 32 bits of its file's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def distribution_of(key: str, spec: Any, path: str | Path) -> str:
    """The distribution's name, given or understood as W&B understands it."""
    where = f"{path}: parameters.{key}"
    if key == "run":
        raise RequestError(f"{where}: the sweep names its runs; leave it out")
    if not isinstance(spec, dict):
        raise RequestError(f"{where} = {spec!r}; give value, values, or min and max")
    if "parameters" in spec:
        raise RequestError(
            f"{where}: nested parameters; a notebook's parameters are flat: give values for {key} itself"
        )
    guess = "uniform" if any(isinstance(spec.get(end), float) for end in ("min", "max")) else "int_uniform"
    if "value" in spec or "values" in spec:
        guess = "constant" if "value" in spec else "categorical"
        guess = "categorical_w_probabilities" if "probabilities" in spec else guess
    kind = spec.get("distribution", guess)
    if kind not in DISTRIBUTIONS:
        raise RequestError(f"{where}: distribution = {kind!r}; known here: {', '.join(DISTRIBUTIONS)}")
    optional = {"distribution"} | ({"q"} if kind.startswith("q_") else set())
    optional |= {"mu", "sigma"} if "normal" in kind else set()
    missing, unknown = DISTRIBUTIONS[kind] - set(spec), set(spec) - DISTRIBUTIONS[kind] - optional
    if missing or unknown:
        fault = (
            f"lacks {', '.join(sorted(missing))}"
            if missing
            else f"does not know {', '.join(sorted(map(str, unknown)))}"
        )
        raise RequestError(f"{where}: {kind} {fault}; give value, values, or min and max")
    refuse_wrong_numbers(kind, spec, where)
    return kind


def refuse_wrong_numbers(kind: str, spec: Mapping[str, Any], where: str) -> None:
    if "values" in spec:
        values, shares = spec["values"], spec.get("probabilities")
        if not isinstance(values, list) or not values:
            raise RequestError(f"{where}: values = {values!r}; give a list")
        if shares is not None and (len(shares) != len(values) or not math.isclose(sum(shares), 1.0)):
            raise RequestError(f"{where}: probabilities = {shares!r}; give one for each value, 1 together")
        return
    numbers = {name: spec[name] for name in ("min", "max", "q", "mu", "sigma") if name in spec}
    for name, number in numbers.items():
        is_count = kind == "int_uniform" and name in ("min", "max")
        if isinstance(number, bool) or not isinstance(number, int if is_count else int | float):
            raise RequestError(
                f"{where}: {name} = {number!r}; give a {'whole ' if is_count else ''}number (1.0e-6, not 1e-6)"
            )
    if numbers.get("q", 1) <= 0 or numbers.get("sigma", 0) < 0:
        raise RequestError(f"{where}: {numbers}; give q > 0 and sigma ≥ 0")
    if "min" in numbers and not numbers["min"] < numbers["max"]:
        raise RequestError(f"{where}: min = {numbers['min']} is not below max = {numbers['max']}")
    if "log_uniform" in kind and numbers["min"] <= 0:
        raise RequestError(f"{where}: min = {numbers['min']}; {kind} needs numbers > 0")


def grid_values(kind: str, spec: Mapping[str, Any]) -> list[Any]:
    if kind == "constant":
        return [spec["value"]]
    if kind == "int_uniform":
        return list(range(spec["min"], spec["max"] + 1))
    if kind == "q_uniform":
        step = spec.get("q", 1.0)
        return [spec["min"] + step * number for number in range(math.ceil((spec["max"] - spec["min"]) / step))]
    return spec["values"]


def quantile(kind: str, spec: Mapping[str, Any], x: float) -> Any:
    """The value below which a share x of the distribution lies."""
    if kind == "constant":
        return spec["value"]
    if kind == "categorical":
        return spec["values"][whole_quantile(0, len(spec["values"]), x)]
    if kind == "categorical_w_probabilities":
        bounds = itertools.accumulate(spec["probabilities"])
        return next((value for value, bound in zip(spec["values"], bounds) if x < bound), spec["values"][0])
    if kind == "int_uniform":
        return whole_quantile(spec["min"], spec["max"] + 1, x)
    if "normal" in kind:
        mu, sigma = spec.get("mu", 0.0), spec.get("sigma", 1.0)
        value = mu + sigma * NormalDist().inv_cdf(x)
        value = math.exp(value) if "log" in kind else value
    else:
        low, high = spec["min"], spec["max"]
        if "log" in kind:
            low, high = math.log(low), math.log(high)
        if kind.startswith("inv_"):
            value = math.exp(-(-high + (1 - x) * (high - low)))
        else:
            value = low + x * (high - low)
            value = math.exp(value) if "log" in kind else value
    if kind.startswith("q_"):
        value = round(value / spec.get("q", 1.0)) * spec.get("q", 1.0)
    return value


def whole_quantile(low: int, high: int, x: float) -> int:
    """Of the whole numbers low … high − 1, equally likely, the first whose share reaches x (scipy's `randint.ppf`)."""
    value = math.ceil(x * (high - low) + low) - 1
    below = max(value - 1, low)
    return below if (below - low + 1) / (high - low) >= x else value


# ---------------------------------------------------------------------------------------------------------- the names


def name_points(sweep: str, points: Sequence[Mapping[str, Any]]) -> list[Point]:
    """A name for each point, from its values of what differs between points; at most LONGEST_NAME characters."""
    columns = {key: [values[key] for values in points] for key in points[0]}
    told = {key: column for key, column in columns.items() if len({json.dumps(value) for value in column}) > 1}
    words = [words_of(key, column) for key, column in told.items()]
    named: dict[str, Point] = {}
    for number, values in enumerate(points):
        name = "-".join([sweep, *(column[number] for column in words)])
        if len(name) > LONGEST_NAME or name in named:
            digest = hashlib.sha256(json.dumps([number, values]).encode()).hexdigest()[:6]
            name = f"{name[: LONGEST_NAME - 7]}-{digest}"
        named[name] = Point(name, dict(values))
    return list(named.values())


def words_of(key: str, column: Sequence[Any]) -> list[str]:
    """Each value of a parameter in letters that a run's name may have: of paths only what differs."""
    words = [word_of(key, value) for value in column]
    if all("/" in word for word in words):
        paths = [word.split("/") for word in words]
        while len({path[0] for path in paths}) == 1:
            paths = [path[1:] for path in paths]
        while len({path[-1] for path in paths}) == 1:
            paths = [path[:-1] for path in paths]
        words = ["/".join(path) for path in paths]
    return [re.sub(r"[^A-Za-z0-9._]+", "_", word).strip("_") for word in words]


def word_of(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "_".join("x".join(map(str, item)) if isinstance(item, list) else str(item) for item in value)
    return f"{key}{value:.4g}" if isinstance(value, float) else f"{key}{value}"
