"""What has to hold before anything is sent to W&B's server: its package, its mode, a login. One line if it does not."""

import os
from typing import Any

from vr1lib.records import RequestError


def wandb_for_upload(what: str) -> Any:
    """The wandb package, ready to send `what` without a prompt. Raises RequestError with the mend."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        raise RequestError(f"WANDB_MODE={mode}: {what} needs W&B's server; unset WANDB_MODE for this command")
    try:
        import wandb
    except ImportError:
        raise RequestError(f"W&B is not installed, and {what} needs it: pip install wandb") from None
    if not wandb.login(prompt=False, verify=False):
        host = wandb.setup().settings.base_url
        raise RequestError(f"W&B is not logged in at {host}: run `wandb login`, or set WANDB_API_KEY (WANDB_BASE_URL)")
    return wandb
