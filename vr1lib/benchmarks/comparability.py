"""Whether two score rows were measured alike. The paper's tables mix protocols; here an unlike pair is named.

Not compared: the seed, for two seeds are two draws of the same measurement, and the number of calls to a judge.
"""

from collections.abc import Mapping
from typing import Any

_WORDS = {
    "benchmark": "benchmark",
    "protocol": "protocol",
    "control": "control",
    "tries": "tries for the format",
    "prompt": "prompt",
    "samples": "samples a problem",
    "n": "number of problems",
    "shard": "shard",
    "reward": "reward",
}
_BEFORE = {"protocol": "strict", "control": "none", "tries": 1, "prompt": "ours", "samples": 1, "shard": "1/1"}
_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "max_completion_tokens": "completion tokens allowed"}
_HASHES = {"image_spec": "image specification", "prompt_spec": "prompt specification"}


def unlike(row: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs between two rows of scores.json, in words with both values: ["protocol (strict, authors)"].

    A row written before a key was there counts as what was then the only way (`_BEFORE`). Rows with as many problems
    may still hold other ones: pair problems by id before testing.
    """
    pairs = [(words, row.get(key, _BEFORE.get(key)), other.get(key, _BEFORE.get(key))) for key, words in _WORDS.items()]
    sampling = [_sampling(one) for one in (row, other)]
    pairs += [(words, *(one.get(key) for one in sampling)) for key, words in _SAMPLING.items()]
    pairs.append(("judge", *(_judge(one) for one in (row, other))))
    named = [f"{words} ({_shown(value)}, {_shown(against)})" for words, value, against in pairs if value != against]
    return named + [words for key, words in _HASHES.items() if row.get(key) != other.get(key)]


def _sampling(row: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling without the seed; greedy has no top_p."""
    found = dict(row.get("sampling") or {})
    return found if found.get("temperature") != 0 else {**found, "top_p": None}


def _judge(row: Mapping[str, Any]) -> Any:
    judge = row.get("judge")
    if not isinstance(judge, Mapping):
        return judge
    return {key: value for key, value in judge.items() if key != "calls"}


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("model", "")) or ", ".join(f"{key} {said}" for key, said in value.items())
    return "none" if value is None else str(value)
