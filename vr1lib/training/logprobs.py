"""Log-probabilities of completions under a model, without ever holding all their logits.

A vocabulary of 152K makes the logits of 8,192 tokens 5 GB in float32, and log-softmax and gradient that again. So the
model's head is made to give log-probability and entropy instead: it works on some positions at a time, in the backward
pass too, where each piece is computed again. Positions that no token of a completion comes from are left out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vr1lib.loss import token_logprobs
from vr1lib.models.vlm import EncodedPrompt, Vlm, collate_prompts, with_completions

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

    Prompts are padded on the left and completions on the right: completion token t of every row is in one column.
    """
    device = vlm.device
    mask = completion_mask(completions).to(device)
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in completions], batch_first=True, padding_value=vlm.pad_token_id
    ).to(device)  # [rows, tokens]
    batch = {name: value.to(device) for name, value in collate_prompts(prompts, vlm.pad_token_id).items()}
    banned = torch.tensor(vlm.vision_token_ids, dtype=torch.long, device=device)

    def score(hidden: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int) -> Tensor:
        """[rows, tokens, 2] from hidden states [rows, tokens + 1, hidden size]; those at t predict token t."""
        scores = hidden.new_zeros((*mask.shape, 2), dtype=torch.float32)
        scores[mask] = in_pieces(hidden[:, :-1][mask], ids[mask], head, vocabulary)
        return scores

    def score_piece(hidden: Tensor, chosen: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        logits = head(hidden).index_fill(1, banned, float("-inf"))  # [positions, vocabulary]
        return torch.stack(token_logprobs(logits, chosen, temperature or 1.0), dim=1)

    def in_pieces(hidden: Tensor, chosen: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int) -> Tensor:
        """[positions, 2]"""
        at_once = max(1, LOGITS_AT_ONCE // vocabulary)
        if len(hidden) <= at_once or not torch.is_grad_enabled():
            pieces = [score_piece(*piece, head) for piece in zip(hidden.split(at_once), chosen.split(at_once))]
        else:
            pieces = [
                checkpoint(score_piece, *piece, head, use_reentrant=False, preserve_rng_state=False)
                for piece in zip(hidden.split(at_once), chosen.split(at_once))
            ]
        return torch.cat(pieces)

    with head_gives(model, score):
        output = model(**with_completions(batch, ids, mask), use_cache=False, logits_to_keep=ids.shape[1] + 1)
    return output.logits.unbind(dim=2)


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
