"""A model goes out: in the format of a library that has its architecture with exactly our parameters, else in ours."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effarch.config import Config, UserError, did_you_mean
from effarch.hub.families import WRITTEN, Written, effarch, effarch_encoder, written_for
from effarch.hub.fields import Fields
from effarch.hub.folder import CONFIG
from effarch.hub.write import save_encoder, save_lm
from effarch.models.encoder import Encoder
from effarch.models.lm import LM, LMConfig

FORMATS = ("auto", *WRITTEN)
CARD = "README.md"
#: What is copied where it lies beside a model's tensors.
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    CARD,
    "LICENSE",
)

# Of our configs: how something is computed, not what; other formats have no place for it.
_HOW = {"dtype": "float32", "param_dtype": "float32", "remat": "none", "scan_layers": True}


def same_function(a: LMConfig, b: LMConfig) -> bool:
    """Whether two configs describe the same function of the same parameters, however it is computed."""
    return _function(a) == _function(b)


def _function(config: LMConfig) -> tuple[Config, ...]:
    blocks = [config.block(i) for i in range(config.num_layers)]
    return (config.replace(**_HOW, pattern=(blocks[0],)), *blocks)


def config_json(config: LMConfig, format: str = "auto") -> dict[str, Any]:
    """The ``config.json`` of a model.

    Args:
      config: of the model.
      format: "effarch", ours, which takes any model; "fla" or "transformers", which take what they have with the same
        parameters; "auto", the first of these libraries that has it, else ours.

    Raises:
      UserError: no such format, or the library has no such model.
    """
    if format not in FORMATS:
        raise UserError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}{did_you_mean(format, FORMATS)}")
    for library in (name for name in WRITTEN if name != "effarch" and format in ("auto", name)):
        for family in written_for(library):
            if (found := _faithful(family, config)) is not None:
                return found
    if format in ("auto", "effarch"):
        return effarch.export(config)
    mixers = sorted({block.mixer.type_name for block in config.pattern})
    raise UserError(
        f"format: {format} has no model with {', '.join(mixers)} and these parameters, expected format=effarch, which"
        " takes any"
    )


def _faithful(family: Written, config: LMConfig) -> dict[str, Any] | None:
    """What a family writes, if reading it gives the same model back."""
    found = family.export(config)
    if found is None:
        return None
    fields = Fields(found, CONFIG)
    try:
        back = family.config(fields)
    except ValueError:  # a size that it refuses
        return None
    fields.finish()
    return found if same_function(back, config) else None


def export_lm(
    folder: str | Path,
    lm: LM,
    *,
    format: str = "auto",
    files: Mapping[str, str | bytes] | None = None,
    card: str | None = None,
) -> str:
    """Writes a language model as a folder that others can load.

    Args:
      folder: new or empty. lm: the model. format: as for :func:`config_json`.
      files: further files by name: of the tokenizer, for example. card: text of the model card, ``README.md``.

    Returns:
      The ``model_type`` that was written.

    Raises:
      UserError: as :func:`config_json`; or the folder is not empty, or cannot be written: nothing is left behind.
    """
    config = config_json(lm.config, format)
    save_lm(folder, lm, config, files={**(files or {}), **({} if card is None else {CARD: card})})
    return config["model_type"]


def files_beside(folder: str | Path) -> dict[str, bytes]:
    """Tokenizer, model card and licence of a folder, by name."""
    found = {name: Path(folder) / name for name in BESIDE}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


def export_encoder(
    folder: str | Path,
    encoder: Encoder,
    *,
    files: Mapping[str, str | bytes] | None = None,
    card: str | None = None,
) -> str:
    """Writes an encoder, whatever stands on it, in our own format (:mod:`effarch.hub.families.effarch_encoder`).

    Arguments, result and errors as :func:`export_lm`.
    """
    config = effarch_encoder.export(encoder.config)
    save_encoder(folder, encoder, config, files={**(files or {}), **({} if card is None else {CARD: card})})
    return config["model_type"]


def export_run(folder: str | Path, model: LM | Encoder, *, card: str | None = None) -> Path:
    """Writes ``export`` in the folder of a run, in the place of an older one, with the run's tokenizer.

    Arguments as for :func:`export_lm`.
    """
    target, files = Path(folder) / "export", files_beside(folder)
    shutil.rmtree(target, ignore_errors=True)
    if isinstance(model, LM):
        export_lm(target, model, files=files, card=card)
    else:
        export_encoder(target, model, files=files, card=card)
    return target
