"""Log-probabilities of completions under a model: each prompt read once, and never all logits held.

Completions of one prompt go through the model in one line with it (`models/shared_prompt.py`). A vocabulary of 152K
makes the logits of 8,192 tokens 5 GB in float32, and log-softmax and gradient that again. So the model's head is made
to give log-probability and entropy instead: it works on some positions at a time, in the backward pass too, where each
piece is computed again. Positions that no token of a completion comes from are left out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vr1lib.loss import token_logprobs
from vr1lib.models.seen_pictures import seen_once
from vr1lib.models.shared_prompt import let_share_prompts, line_of
from vr1lib.models.vlm import EncodedPrompt, Vlm

LOGITS_AT_ONCE = 2**26  # 441 positions of a vocabulary of 152K, 256 MiB in float32; our choice


def completion_logprobs(
    vlm: Vlm,
    model: torch.nn.Module,
    prompts: Sequence[EncodedPrompt],
    completions: Sequence[Sequence[int]],
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (with gradient) and entropies of completions [rows, tokens] under `model`, 0 after each one's
    end; as the sampler has them: at the temperature sampled with (0 counts as 1), vision tokens banned.

    Rows whose prompt is the same object share it: it goes through the model once.
    """
    let_share_prompts(model)
    line = line_of(vlm, prompts, completions)
    banned = torch.tensor(vlm.vision_token_ids, dtype=torch.long, device=vlm.device)
    ids = torch.tensor([token for row in completions for token in row], device=vlm.device)

    def score(hidden: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int) -> Tensor:
        """[1, tokens, 2] of all completions one after another, from hidden states [1, tokens, hidden size]."""
        at_once = max(1, LOGITS_AT_ONCE // vocabulary)
        pieces = zip(hidden[0].split(at_once), ids.split(at_once), strict=True)
        if len(ids) <= at_once or not torch.is_grad_enabled():
            scores = [score_piece(*piece, head) for piece in pieces]
        else:
            scores = [
                checkpoint(score_piece, *piece, head, use_reentrant=False, preserve_rng_state=False) for piece in pieces
            ]
        return torch.cat(scores)[None]

    def score_piece(hidden: Tensor, chosen: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        logits = head(hidden).index_fill(1, banned, float("-inf"))  # [positions, vocabulary]
        return torch.stack(token_logprobs(logits, chosen, temperature or 1.0), dim=1)

    with head_gives(model, score), seen_once(vlm, model, line.prompts):
        predicting = torch.cat(line.predicting).to(vlm.device)
        output = model(**line.inputs, use_cache=False, logits_to_keep=predicting)
    rows = output.logits[0].split([len(row) for row in completions])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).unbind(dim=2)


@contextmanager
def head_gives(model: torch.nn.Module, score: Callable[[Tensor, Callable, int], Tensor]) -> Iterator[None]:
    """Inside, the model's head gives score(hidden states, its own forward, size of the vocabulary) as "logits".

    The head is still called by the model, inside whatever wraps it: sharding gathers its weights as always.
    """
    head = extract_model_from_parallel(model).get_output_embeddings()
    plain = head.forward
    head.forward = lambda hidden: score(hidden, plain, head.out_features)
    try:
        yield
    finally:
        del head.forward


def completion_mask(completions: Sequence[Sequence[int]]) -> Tensor:
    """[rows, tokens], true on each row's own tokens."""
    lengths = torch.tensor([len(row) for row in completions])
    return torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
