"""Does a vLLM server with the merged model answer as the training process did, token for token?

    vr1 merge outputs/30_ptst_grpo/demo merged
    vllm serve merged --dtype float32 --max-model-len 2048            # any OpenAI-compatible vLLM server
    python bench/vllm_merge.py --run outputs/30_ptst_grpo/demo --endpoint http://127.0.0.1:8000

The run's own model, its adapter beside the weights as it was trained, answers greedily in this process; the server gets
the same problems as chat messages with pictures in base64. Compared are the ids of prompt and answer. Each side rounds
its sums in its own order, so where two tokens are all but equal the answers may part: for each answer that differs, the
place is told with the log-probability gap between the two tokens, by this process and by the server. Exit code 1 if any
differ. `--enlarge 1.3` makes the pictures' sides no multiple of an image token's, so that both sides must resize.
"""

import argparse
import io
import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vr1lib.benchmarks.protocol import read_problems  # noqa: E402
from vr1lib.data.shapeworld import make_problems  # noqa: E402
from vr1lib.models.merge import model_folder  # noqa: E402
from vr1lib.models.rollout_local import sample  # noqa: E402
from vr1lib.models.rollout_vllm import messages  # noqa: E402
from vr1lib.models.vlm import Vlm, collate_prompts, load_vlm  # noqa: E402
from vr1lib.records import Problem  # noqa: E402

REQUESTS_AT_ONCE = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", metavar="URL", help="the server, such as http://127.0.0.1:8000")
    parser.add_argument("--model", metavar="NAME", help="the served model's name; default: the server's first")
    parser.add_argument("--run", metavar="FOLDER", help="the run (or model folder) that was merged")
    parser.add_argument("--problems", metavar="FILE.jsonl", help="default: ShapeWorld's test problems, seed 0")
    parser.add_argument("--limit", type=int, default=100, help="how many problems")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--enlarge", type=float, default=1.0, metavar="FACTOR", help="of the pictures' sides")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if not options.endpoint or not options.run:
        print("vllm_merge: not measured; give --run FOLDER and the --endpoint of a server with its merged model")
        return 0

    vlm = load_vlm(model_folder(options.run) or options.run)
    with tempfile.TemporaryDirectory() as folder:
        problems = list(read_problems(options.problems))[: options.limit] if options.problems else None
        problems = problems or make_problems(folder, "test", options.limit, grid_sizes=(2, 3, 4))
        if options.enlarge != 1:
            problems = [enlarged(problem, options.enlarge, Path(folder)) for problem in problems]
        report = compare(vlm, problems, Server(options.endpoint, options.model), options.max_tokens)
    report = {"run": options.run, "method": vlm.method, "enlarge": options.enlarge, **report}
    print(json.dumps(report, indent=2, ensure_ascii=False) if options.json else in_words(report))
    return int(report["same_answers"] < report["problems"])


class Server:
    """A vLLM server's chat completions, greedy and with token ids."""

    def __init__(self, endpoint: str, model: str | None) -> None:
        self.endpoint = endpoint.rstrip("/").removesuffix("/v1")
        self.model = model or self.ask("/v1/models")["data"][0]["id"]

    def ask(self, path: str, body: dict | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.endpoint + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            sys.exit(f"{self.endpoint}{path}: {error.code} {error.read().decode(errors='replace')[:300]}")
        except OSError as error:
            sys.exit(f"--endpoint {self.endpoint}: no answer ({error}); start the server, or wait until it is ready")

    def complete(self, vlm: Vlm, problem: Problem, max_tokens: int) -> dict[str, Any]:
        body = {
            "model": self.model,
            "messages": messages(vlm, problem),
            "temperature": 0,
            "max_tokens": max_tokens,
            "logit_bias": {str(token): -100 for token in vlm.vision_token_ids},  # as our sampler: never written
            "return_token_ids": True,
            "logprobs": True,
            "top_logprobs": 2,
        }
        return self.ask("/v1/chat/completions", body)


def compare(vlm: Vlm, problems: Sequence[Problem], server: Server, max_tokens: int) -> dict[str, Any]:
    started = time.perf_counter()
    prompts = [vlm.encode_prompt(problem) for problem in problems]
    seeds = range(len(prompts))  # greedy: they decide nothing
    groups = sample(vlm, prompts, group_size=1, max_completion_tokens=max_tokens, temperature=0.0, seeds=seeds)
    ours = [group[0].token_ids for group in groups]
    local_seconds = time.perf_counter() - started
    started = time.perf_counter()
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        answers = list(pool.map(lambda problem: server.complete(vlm, problem, max_tokens), problems))
    server_seconds = time.perf_counter() - started
    differing = []
    for problem, prompt, mine, answer in zip(problems, prompts, ours, answers, strict=True):
        theirs = answer["choices"][0]["token_ids"]
        if mine != theirs:
            differing.append({"problem": problem.id, **where_parted(vlm, prompt, mine, answer["choices"][0])})
    same_prompts = sum(
        answer["prompt_token_ids"] == prompt.input_ids.tolist() for prompt, answer in zip(prompts, answers)
    )
    return {
        "problems": len(problems),
        "same_prompts": same_prompts,
        "same_answers": len(problems) - len(differing),
        "tokens": sum(map(len, ours)),
        "different_answers": len({tuple(ids) for ids in ours}),
        "ended": sum(ids[-1] in vlm.eos_token_ids for ids in ours),
        "local_seconds": round(local_seconds, 1),
        "server_seconds": round(server_seconds, 1),
        "differing": differing,
    }


@torch.no_grad()
def where_parted(vlm: Vlm, prompt, mine: list[int], choice: dict[str, Any]) -> dict[str, Any]:
    """The first token that differs, and how far the two tokens are apart in log-probability on either side."""
    theirs = choice["token_ids"]
    place = next((at for at, (one, other) in enumerate(zip(mine, theirs)) if one != other), min(len(mine), len(theirs)))
    found: dict[str, Any] = {"token": place, "of": len(mine)}
    if place == min(len(mine), len(theirs)):
        return found | {"ours": "", "server": "one answer is the beginning of the other"}
    batch = collate_prompts([prompt], vlm.pad_token_id)
    said = torch.tensor([mine[:place]], dtype=torch.long)
    batch["input_ids"] = torch.cat([batch["input_ids"], said], dim=1)
    for key in ("attention_mask", "mm_token_type_ids"):
        batch[key] = torch.cat([batch[key], torch.full_like(said, int(key == "attention_mask"))], dim=1)
    batch = {key: value.to(vlm.device) for key, value in batch.items()}
    logprobs = vlm.model(**batch).logits[0, -1].float().log_softmax(dim=-1)
    top = [entry["logprob"] for entry in choice["logprobs"]["content"][place]["top_logprobs"]]
    return found | {
        "ours": vlm.tokenizer.decode([mine[place]]),
        "server": vlm.tokenizer.decode([theirs[place]]),
        "our_gap": float(logprobs[mine[place]] - logprobs[theirs[place]]),
        "server_gap": top[0] - top[1],
    }


def enlarged(problem: Problem, factor: float, folder: Path) -> Problem:
    images = []
    for number, path in enumerate(problem.images):
        with Image.open(path) as picture:
            size = (round(picture.width * factor), round(picture.height * factor))
            file = io.BytesIO()
            picture.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "png")
        images.append(folder / f"{problem.id}-{number}.png")
        images[-1].write_bytes(file.getvalue())
    return problem.model_copy(update={"images": [str(image) for image in images]})


def in_words(report: dict[str, Any]) -> str:
    lines = [
        f"{report['run']} ({report['method']}): {report['same_prompts']} of {report['problems']} prompts and "
        f"{report['same_answers']} of {report['problems']} answers are the same token for token",
        f"{report['tokens']:,} tokens, {report['different_answers']} different answers, {report['ended']} ended by "
        f"themselves; here {report['local_seconds']} s, server {report['server_seconds']} s",
    ]
    for row in report["differing"]:
        gaps = f"gap {row['our_gap']:.2g} here, {row['server_gap']:.2g} there (nats)" if "our_gap" in row else ""
        lines.append(
            f"{row['problem']}, token {row['token']} of {row['of']}: {row['ours']!r} / {row['server']!r} {gaps}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
