"""Where a checkpoint lies: a folder, or a name on the Hugging Face hub that is fetched into its cache."""

import re
from pathlib import Path

from effarch.config import UserError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ("*.safetensors", "*.json", "*.txt", "tokenizer.model")


def locate(name: str | Path) -> Path:
    """The folder of a checkpoint.

    Args:
      name: a folder (or one file of tensors); or "owner/model" of the hub, fetched where the network allows it, else
        taken from the cache (``HF_HOME``) if it is there. ``HF_HUB_OFFLINE=1`` never asks the network.

    Raises:
      UserError: neither a folder nor a name of the hub that can be had; says what to do.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if isinstance(name, Path) or not _NAME.fullmatch(name):
        raise UserError(f'{name}: expected a folder, or a name "owner/model" of the Hugging Face hub, found neither')
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{name}: no such folder; to fetch it from the Hugging Face hub install the extra: pip install effarch[hub]"
        ) from error
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_WANTED)))
    except Exception as error:  # its own kinds, the HTTP library's and the system's
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"{name}: no such folder, and the Hugging Face hub cannot be asked ({why}); where there is a network run"
            f" `hf download {name} --local-dir DIR`, then give DIR"
        ) from error
