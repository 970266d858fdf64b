"""Sampling from vLLM servers: `rollout: vllm`.

A server (vLLM 0.32 or later, one per group of GPUs) is asked over its OpenAI chat endpoint, one request a prompt with
the group's samples in it. After each update it gets the policy: under LoRA and QLoRA the adapter alone, under the name
of its version, so that the reply itself says which version wrote it; under full fine-tuning the weights are reloaded
in place. Weights travel through a folder that trainer and servers both see. Both ways every version lies at a path of
its own: a server keeps what it has read of a prompt by the adapter's path.

    vllm serve MODEL --logprobs-mode processed_logprobs --enable-lora --max-lora-rank 64      # LoRA, QLoRA
    vllm serve MODEL --logprobs-mode processed_logprobs                                       # full
    with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 (adapters) or VLLM_SERVER_DEV_MODE=1 (full) in its environment

MODEL is the model that training starts from, under an adapter its base; where that is not enough (`write_served`) the
run writes the folder to serve and says so. It may be started after the run, which waits for it.

The log-probabilities are the server's own, after temperature and ban, which is what the trainer recomputes: their gap
is the price of another machine's arithmetic (docs/metrics.md, `logprob_gap`). A server that is silent or late is
waited for and asked again, another one in its place; one that was started anew gets its weights again. After
`wait_seconds` without an answer the work ends with SamplerLost.

Samples carry no seed: a server batches what comes, and does not promise the same numbers twice.
"""

import base64
import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from accelerate.utils import extract_model_from_parallel

from vr1lib.models.rollout_local import Sampled
from vr1lib.models.vlm import SPEC_FILE, EncodedPrompt, Vlm, load_vlm, save_vlm
from vr1lib.prompts import prompt_parts
from vr1lib.records import Problem, RequestError

REQUESTS_AT_ONCE = 64  # prompts in flight at each server; it queues the rest itself, our choice
PAUSES = (0.2, 1.0, 3.0, 10.0)  # seconds before an unanswered request is sent again; the last one for ever
BORN = re.compile(r"^process_start_time_seconds\s+(\S+)", re.MULTILINE)


class SamplerLost(Exception):
    """No server answers any more. One line that says which and for how long."""


class VllmSampler:
    """The policy as vLLM servers have it. `version` counts the updates it has got; None before the first."""

    def __init__(self, vlm: Vlm, endpoints: Sequence[str], folder: str | Path, wait_seconds: float = 600.0) -> None:
        self.vlm = vlm
        self.folder = Path(folder).resolve()
        self.wait_seconds = wait_seconds
        self.version: int | None = None
        self.servers = [Server(url, wait_seconds) for url in endpoints]

    def update(self, vlm: Vlm, version: int) -> None:
        """Give every server the weights of `vlm`; the ones before are forgotten. Raises SamplerLost."""
        place = self.folder / f"version-{version:06d}"
        shutil.rmtree(place, ignore_errors=True)
        save_for_server(vlm, place)
        load = Server.load_adapter if vlm.method != "full" else Server.load_weights
        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(lambda server: load(server, place, version), self.servers))
        for old in self.folder.glob("version-*"):
            if old != place:
                shutil.rmtree(old, ignore_errors=True)
        if self.version is None:
            for server in self.servers:
                server.check_logprobs(self.vlm)
        self.version = version

    def follow(self, version: int) -> None:
        """Another process has given the servers this version."""
        self.version = version
        for server in self.servers:
            server.note(self.folder / f"version-{version:06d}", version, self.vlm.method)

    def sample(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[EncodedPrompt],
        *,
        group_size: int,
        max_completion_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[list[Sampled]]:
        """`group_size` samples for each problem, whose prompt the server has to read as `prompts` say it.

        Groups come in order, each as soon as it is there: while it is graded the servers go on. Raises SamplerLost, and
        RequestError if a server renders a prompt, counts a picture's tokens or speaks of its log-probabilities
        otherwise than the trainer.
        """
        assert self.version is not None, "update() comes first"
        settings = {
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_completion_tokens,
            "n": group_size,
            "logit_bias": {str(token): -100 for token in self.vlm.vision_token_ids},  # never written, as in our sampler
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
            "repetition_penalty": 1.0,  # Qwen2.5-VL is published with 1.05, which would hold without this line
            "top_k": top_k,  # 0: all
            "min_p": 0.0,
        }

        def ask(place: int) -> list[Sampled]:
            body = settings | {"messages": messages(self.vlm, problems[place])}
            server, reply = self.ask_any(place, body)
            samples = read_reply(server, reply, prompts[place], max_completion_tokens, self.version)
            if progress:
                progress(len(samples))
            return samples

        with ThreadPoolExecutor(REQUESTS_AT_ONCE * len(self.servers)) as pool:
            yield from pool.map(ask, range(len(problems)))
        if stale := [server.url for server in self.servers if server.was_restarted()]:
            raise SamplerLost(f"{', '.join(stale)}: started anew while sampling, with weights of its own")

    def ask_any(self, place: int, body: dict[str, Any]) -> tuple["Server", dict[str, Any]]:
        """The first server's answer, beginning with the one whose turn it is; asked in turn until the wait is over."""
        deadline = time.monotonic() + self.wait_seconds
        faults: dict[str, str] = {}
        for turn in itertools.count():
            server = self.servers[(place + turn) % len(self.servers)]
            try:
                return server, server.complete(body, max(1.0, deadline - time.monotonic()))
            except Unanswered as fault:
                faults[server.url] = str(fault)
            pause = PAUSES[min(turn // len(self.servers), len(PAUSES) - 1)] / len(self.servers)
            if time.monotonic() + pause > deadline:
                told = "; ".join(f"{url}: {fault}" for url, fault in faults.items())
                raise SamplerLost(f"no answer in {self.wait_seconds:.0f} s: {told}")
            time.sleep(pause)


class Unanswered(Exception):
    """A request that may well be answered when it is sent again."""


class Server:
    """One vLLM server. What it serves, and since when, is remembered to notice that it was started anew."""

    def __init__(self, url: str, wait_seconds: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.wait_seconds = wait_seconds
        self.client = httpx.Client(base_url=self.url, limits=httpx.Limits(max_connections=None))
        self.model: str | None = None
        self.weights: tuple[Path, int] | None = None
        self.born: str | None = None

    def load_adapter(self, place: Path, version: int) -> None:
        """The adapter in `place` under its version's name; the one before goes."""
        name, before = f"version-{version}", self.model
        body = {"lora_name": name, "lora_path": str(place), "load_inplace": True}
        self.insist("/v1/load_lora_adapter", body)
        if before and before != name:
            self.insist("/v1/unload_lora_adapter", {"lora_name": before}, missing_is_fine=True)
        self.note(place, version, "lora")

    def load_weights(self, place: Path, version: int) -> None:
        """All weights from `place`, in place of those served, and nothing read with those is kept.

        Reloading empties the workers' cache of encoded pictures and not the scheduler's list of what is in it: without
        the reset the next request with a picture seen before kills the server ("Encoder cache miss").
        """
        self.insist("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(place)}})
        for cache in ("encoder", "mm", "prefix"):
            self.insist(f"/reset_{cache}_cache", {})
        self.note(place, version, "full")

    def note(self, place: Path, version: int, method: str) -> None:
        """Remember what it has now, and by which name to ask for it."""
        self.weights = (place, version)
        if method == "full":
            self.model, self.born = self.insist("/v1/models", None)["data"][0]["id"], self.birth()
        else:
            self.model = f"version-{version}"

    def was_restarted(self) -> bool:
        """Whether reloaded weights are gone. An adapter's name says so itself: the request ends in 404."""
        return self.born is not None and self.birth() != self.born

    def birth(self) -> str:
        return match[1] if (match := BORN.search(self.insist("/metrics", None, as_text=True))) else "unknown"

    def check_logprobs(self, vlm: Vlm) -> None:
        """A token forced by bias is certain after that bias: its log-probability is 0 if the server counts it then."""
        forced = {str(vlm.pad_token_id): 100}
        body = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 1, "logprobs": True, "logit_bias": forced}
        said = self.insist("/v1/chat/completions", body | {"model": self.model})
        if said["choices"][0]["logprobs"]["content"][0]["logprob"] < -0.01:
            raise RequestError(
                f"rollout_endpoints: {self.url}: gives log-probabilities before temperature and ban; start it with "
                "--logprobs-mode processed_logprobs"
            )

    def complete(self, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply to a chat request. Raises Unanswered, and RequestError for what no repetition would mend."""
        reply = self.send("/v1/chat/completions", body | {"model": self.model}, seconds)
        if reply.status_code == 404 and self.born is None and self.weights:  # started anew: it has lost the adapter
            self.load_adapter(*self.weights)
            raise Unanswered("it was started anew and has got the adapter again")
        return self.checked("/v1/chat/completions", reply).json()

    def insist(self, path: str, body: dict | None, missing_is_fine: bool = False, as_text: bool = False) -> Any:
        """Ask (GET without a body) until there is an answer. Raises SamplerLost after `wait_seconds`."""
        deadline = time.monotonic() + self.wait_seconds
        for turn in itertools.count():
            try:
                reply = self.send(path, body, max(1.0, deadline - time.monotonic()))
                if missing_is_fine and reply.status_code == 404:
                    return None
                text = self.checked(path, reply).text
                return text if as_text or not text.startswith(("{", "[")) else reply.json()
            except Unanswered as fault:
                pause = PAUSES[min(turn, len(PAUSES) - 1)]
                if time.monotonic() + pause > deadline:
                    raise SamplerLost(f"{self.url}{path}: no answer in {self.wait_seconds:.0f} s ({fault})") from None
                time.sleep(pause)

    def send(self, path: str, body: dict | None, seconds: float) -> httpx.Response:
        try:
            if body is None:
                return self.client.get(path, timeout=seconds)
            return self.client.post(path, json=body, timeout=seconds)
        except httpx.TimeoutException:
            raise Unanswered("silent") from None
        except httpx.TransportError as error:
            raise Unanswered(str(error) or type(error).__name__) from None

    def checked(self, path: str, reply: httpx.Response) -> httpx.Response:
        if reply.status_code == 429 or reply.status_code >= 500:
            raise Unanswered(f"HTTP {reply.status_code} {reply.text[:200]}")
        if reply.status_code >= 400:
            said = " ".join(reply.text.split())[:200]
            raise RequestError(
                f"rollout_endpoints: {self.url}{path}: HTTP {reply.status_code} {said}; start the server as "
                "docs/rollouts.md says"
            )
        return reply


def write_served(vlm: Vlm, folder: str | Path) -> Path | None:
    """The folder that servers have to serve where MODEL alone will not do, written if it is not there; else None.

    Under QLoRA the policy is adapter plus 4-bit base, so that servers need that base, unpacked. Under full fine-tuning
    of a model whose head is tied to its embedding (the 3B, not the 7B) they need the head as a tensor of its own, for
    a reload would leave the tied one as it was.
    """
    place = Path(folder).resolve() / "served"
    tied = vlm.method == "full" and vlm.model.config.tie_word_embeddings
    if not (tied or vlm.method == "qlora"):
        return None
    if not (place / SPEC_FILE).exists():
        base = load_vlm(vlm.base, method="qlora", device="cpu") if vlm.method == "qlora" else vlm
        if base is not vlm:
            base = replace(base, model=base.model.unload().dequantize(), method="full")
        save_for_server(base, place)
    return place


def save_for_server(vlm: Vlm, folder: Path) -> None:
    """The adapter, or the whole model with its head as a tensor of its own."""
    model = extract_model_from_parallel(vlm.model)
    if vlm.method != "full" or not model.config.tie_word_embeddings:
        save_vlm(vlm, folder)
        return
    head = next(name for name in model._tied_weights_keys if model.get_parameter(name) is not None)
    weights = dict(model.state_dict())
    save_vlm(vlm, folder, weights | {head: weights[head].clone()})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=2) + "\n", "utf-8")


def messages(vlm: Vlm, problem: Problem) -> list[dict[str, Any]]:
    """The problem as OpenAI chat messages with its pictures in base64, under the model's own prompt specification."""
    content: list[dict[str, Any]] = []
    for part in prompt_parts(problem, vlm.prompt_spec):
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            url = f"data:image/png;base64,{base64.b64encode(Path(part).read_bytes()).decode()}"
            content.append({"type": "image_url", "image_url": {"url": url}})
    turns = [{"role": "user", "content": content}]
    system = vlm.prompt_spec.system
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def read_reply(
    server: Server, reply: dict[str, Any], prompt: EncodedPrompt, max_completion_tokens: int, version: int
) -> list[Sampled]:
    """The samples of a reply. Raises RequestError if the server read another prompt than the trainer will score."""
    if reply.get("prompt_token_ids") != prompt.input_ids.tolist():
        raise RequestError(
            f"rollout_endpoints: {server.url}: reads problem {prompt.problem_id} as other tokens than the trainer; "
            "serve the folder that training started from, whose template and picture sizes are the trainer's"
        )
    samples = []
    for choice in sorted(reply["choices"], key=lambda choice: choice["index"]):
        ids = choice["token_ids"]
        logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        if len(ids) != len(logprobs) or not 0 < len(ids) <= max_completion_tokens:
            raise RequestError(f"rollout_endpoints: {server.url}: {len(ids)} tokens with {len(logprobs)} logprobs; "
                               "update vLLM")  # fmt: skip
        finish = "length" if choice["finish_reason"] == "length" else "stop"
        samples.append(Sampled(ids, logprobs, finish, version))
    return samples
