"""`vr1 merge` and `vr1 ask`: a trained model taken out, and asked a question about pictures.

An answer is shown as it is written, token by token, thinking and answer apart: dimmed and plain in a terminal, under
two headings anywhere else, as one JSON object with --json. Decoding is transformers' own `generate`, with the training
sampler's rules: no vision tokens, no habits of the base (repetition penalty, top-k); greedy answers are the same.
"""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vr1lib.records import Problem, RequestError, open_image
from vr1lib.reward import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, parse_completion

if TYPE_CHECKING:
    from vr1lib.models.vlm import EncodedPrompt, Vlm

THINKING, ANSWER, OUTSIDE = "thinking", "answer", "outside"
BLOCK_AFTER = {THINK_OPEN: THINKING, THINK_CLOSE: OUTSIDE, ANSWER_OPEN: ANSWER, ANSWER_CLOSE: OUTSIDE}
BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"
INTERRUPTED = 130


def merge_command(source: str, out: str) -> None:
    quieten()
    from vr1lib.models.merge import merge

    print(merge(find_model(source), out))


def ask_command(
    model: str,
    images: Sequence[str],
    question: str,
    *,
    max_tokens: int = 4096,
    temperature: float = 0.0,
    as_json: bool = False,
) -> int:
    """Answer on stdout; returns the exit code. Raises RequestError for a model, picture or number that won't do."""
    if max_tokens < 1:
        raise RequestError(f"--max-tokens {max_tokens}: give 1 or more")
    if not 0 <= temperature < float("inf"):
        raise RequestError(f"--temperature {temperature}: give 0 (greedy) or more")
    if not question.strip():
        raise RequestError("--question is blank; ask something")
    for image in images:
        if not Path(image).is_file():
            raise RequestError(f"--image {image}: no such file; give the path of a picture")
        open_image(image)
    quieten()
    from vr1lib.models.merge import own_number_type
    from vr1lib.models.vlm import load_vlm

    place = find_model(model)
    vlm = load_vlm(place, dtype=own_number_type(place))
    pictures = [str(Path(image).resolve()) for image in images]
    problem = Problem(id="--question", images=pictures, question=question, answer="?", source="ask", split="ask")
    prompt = vlm.encode_prompt(problem)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    page = None if as_json else Page(sys.stdout)
    started = time.monotonic()
    ids, interrupted = answer(vlm, prompt, max_tokens, temperature, page.add if page else lambda text: None)
    seconds = round(time.monotonic() - started, 3)
    if page:
        page.close()
    else:
        said = {**in_blocks(decode(vlm, ids)), "tokens": len(ids), "seconds": seconds}
        print(json.dumps(said, ensure_ascii=False), flush=True)
    if interrupted:
        return INTERRUPTED
    if len(ids) == max_tokens and ids[-1] not in vlm.eos_token_ids:
        print(f"cut at {max_tokens} tokens; --max-tokens gives it more", file=sys.stderr)
    return 0


def find_model(name: str) -> str:
    """The model folder meant by a run, a checkpoint or a model, also below outputs/; else the name, for the hub."""
    from vr1lib.models.merge import model_folder
    from vr1lib.workbench.params import project_root

    places = [Path(name)]
    if not Path(name).is_absolute():
        try:
            places += [project_root() / name, project_root() / "outputs" / name]
        except RequestError:  # a model may be asked anywhere
            pass
    for place in places:
        if (folder := model_folder(place)) is not None:
            return str(folder)
        if (place / "manifest.json").is_file():
            raise RequestError(f"{place}: this run saved no model/; let it finish, or give one of its checkpoints/")
    return name


def quieten() -> None:
    """Only what was asked for: no bars and no notices of loading."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)


def answer(
    vlm: "Vlm", prompt: "EncodedPrompt", max_tokens: int, temperature: float, tell: Callable[[str], None]
) -> tuple[list[int], bool]:
    """The answer's token ids, the end token included, and whether Ctrl-C cut it; `tell` gets its text as it comes."""
    from transformers import GenerationConfig
    from transformers.generation import BaseStreamer

    from vr1lib.models.vlm import collate_prompts

    class Stream(BaseStreamer):
        """Whole characters of the text so far: a token may end inside one."""

        def __init__(self) -> None:
            self.ids: list[int] = []
            self.waiting: list[int] = []
            self.in_prompt = True

        def put(self, value) -> None:
            if self.in_prompt:  # generate's first call brings the prompt
                self.in_prompt = False
                return
            token = int(value)
            self.ids.append(token)
            self.waiting.append(token)
            self.tell_waiting(whole=True)

        def end(self) -> None:
            self.tell_waiting(whole=False)

        def tell_waiting(self, whole: bool) -> None:
            text = decode(vlm, self.waiting)
            if not (whole and text.endswith("\N{REPLACEMENT CHARACTER}")):
                self.waiting = []
                tell(text)

    batch = collate_prompts([prompt], vlm.pad_token_id)
    vlm.model.generation_config = GenerationConfig(  # replaced whole: what is left open comes from the model's own
        max_new_tokens=max_tokens,
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else None,
        top_k=0,
        eos_token_id=list(vlm.eos_token_ids),
        pad_token_id=vlm.pad_token_id,
        suppress_tokens=list(vlm.vision_token_ids) or None,
    )
    stream = Stream()
    interrupted = False
    try:
        vlm.model.generate(**{name: value.to(vlm.device) for name, value in batch.items()}, streamer=stream)
    except KeyboardInterrupt:
        interrupted = True
        stream.end()
    return stream.ids, interrupted


def decode(vlm: "Vlm", ids: list[int]) -> str:
    """The text of an answer's tokens, its end token left out; any other special token stays to be seen."""
    ids = [token for token in ids if token not in vlm.eos_token_ids]
    return vlm.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class Blocks:
    """Splits a text that comes in pieces at the four tags, which may come in pieces too."""

    def __init__(self) -> None:
        self.block, self.held = OUTSIDE, ""

    def add(self, text: str) -> Iterator[tuple[str, str]]:
        """(block, text) of what is certain so far."""
        text = self.held + text
        while found := min(((text.find(tag), tag) for tag in BLOCK_AFTER if tag in text), default=None):
            place, tag = found
            yield self.block, text[:place]
            self.block, text = BLOCK_AFTER[tag], text[place + len(tag) :]
        beginnings = (tag[:length] for tag in BLOCK_AFTER for length in range(1, len(tag)))
        self.held = max((part for part in beginnings if text.endswith(part)), key=len, default="")
        yield self.block, text.removesuffix(self.held)

    def rest(self) -> Iterator[tuple[str, str]]:
        yield self.block, self.held


def in_blocks(text: str) -> dict[str, str | bool]:
    """Thinking and answer of a whole text; where it has no answer block, what stands outside is the answer."""
    said = {THINKING: "", ANSWER: "", OUTSIDE: ""}
    blocks = Blocks()
    for block, piece in [*blocks.add(text), *blocks.rest()]:
        said[block] += piece
    return {
        "thinking": said[THINKING].strip(),
        "answer": (said[ANSWER] if ANSWER_OPEN in text else said[OUTSIDE]).strip(),
        "format_ok": parse_completion(text) is not None,
    }


class Page:
    """Writes an answer as it comes: headings, the thinking dimmed; without escape codes where it is no terminal."""

    def __init__(self, target: TextIO) -> None:
        self.target = target
        self.coloured = target.isatty() and "NO_COLOR" not in os.environ
        self.blocks = Blocks()
        self.shown: str | None = None  # the block that the last words belonged to
        self.spaces = ""  # shown once words follow in the same block

    def add(self, text: str) -> None:
        self.write(self.blocks.add(text))

    def close(self) -> None:
        self.write(self.blocks.rest())
        self.target.write((PLAIN if self.coloured else "") + ("\n" if self.shown else ""))
        self.target.flush()

    def write(self, pieces: Iterator[tuple[str, str]]) -> None:
        for block, text in pieces:
            if not text.strip():
                self.spaces += text
                continue
            if block != self.shown:
                self.open(block)
                text, self.spaces = text.lstrip(), ""
            words = text.rstrip()
            self.target.write(self.spaces + words)
            self.spaces = text[len(words) :]
        self.target.flush()

    def open(self, block: str) -> None:
        heading = {THINKING: "Thinking\n", ANSWER: "Answer\n", OUTSIDE: ""}[block]
        if self.coloured:
            heading = PLAIN + (f"{BOLD}{heading}{PLAIN}" if heading else "") + (DIM if block == THINKING else "")
        self.target.write(("\n\n" if self.shown else "") + heading)
        self.shown = block
