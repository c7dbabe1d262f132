"""The fields of somebody's ``config.json``: each that changes the output is asked for, or the checkpoint is refused."""

from collections.abc import Mapping
from typing import Any

from effarch.config import UserError, did_you_mean

_MISSING = object()
_ENDLESS = (float("inf"), float("-inf"))

# Of transformers' PretrainedConfig and of generation: no output of the model depends on them.
IGNORED = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures
    attention_dropout attention_probs_dropout_prob attn_implementation auto_map bad_words_ids begin_suppress_tokens
    bos_token_id bos_token chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping embd_pdrop attn_pdrop resid_pdrop resid_dropout attn_dropout
    hidden_dropout hidden_dropout_prob attention_dropout_prob encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    id2label initializer_range initializer_cutoff_factor is_decoder is_encoder_decoder label2id length_penalty
    max_length max_position_embeddings min_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp
    problem_type pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class
    top_k top_p torch_dtype torchscript transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
    use_cache
    """.split()
)


class Fields:
    """Fields that are taken one by one; :meth:`finish` says what nobody took.

    Args:
      data: the parsed ``config.json``. where: named in errors.
    """

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self._data, self.where = dict(data), where
        self._taken: set[str] = set()

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = _MISSING, *, old: str | None = None) -> Any:
        """The value of a field.

        Args:
          name: of the field. kind: its types; bool is no int, int is a float.
          default: where it is absent or null; without one, it must be there. old: an older name of it.

        Raises:
          UserError: missing, of another type, or under both names with two values.
        """
        names = [n for n in (name, old) if n is not None]
        self._taken.update(names)
        there = [self._data[n] for n in names if self._data.get(n) is not None]
        if len(there) == 2 and there[0] != there[1]:
            raise UserError(f"{self.where}: {name} {there[0]!r} contradicts {old} {there[1]!r}")
        if not there:
            if default is _MISSING:
                raise UserError(f"{self.where}: {name} is missing{did_you_mean(name, self._data)}")
            return default
        return self._checked(name, there[0], kind)

    def _checked(self, name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if float in kinds and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds) or value in _ENDLESS:
            wanted = " or ".join(k.__name__ for k in kinds)
            raise UserError(f"{self.where}: {name}: expected {wanted}, got {value!r}")
        return value

    def nullable(self, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        """The value of a field in which null is a value of its own; ``default`` only where it is absent."""
        if name in self._data and self._data[name] is None:
            self._taken.add(name)
            return None
        return self.take(name, kind, default)

    def positive(self, name: str, default: Any = _MISSING, *, old: str | None = None) -> int:
        """A whole number above 0."""
        found = self.take(name, int, default, old=old)
        if found is not None and not 0 < found < 2**31:  # no array has more
            raise UserError(f"{self.where}: {name}: expected a whole number above 0 and below 2^31, got {found}")
        return found

    def only(self, name: str, *allowed: Any) -> Any:
        """A field that must have one of these values where it is there; the first is the default.

        Raises:
          UserError: it has another, which would change the output.
        """
        self._taken.add(name)
        found = self._data.get(name)
        found = allowed[0] if found is None else found
        if found not in allowed or isinstance(found, bool) is not isinstance(allowed[allowed.index(found)], bool):
            wanted = " or ".join(repr(value) for value in allowed)
            raise UserError(f"{self.where}: {name}: expected {wanted}, got {found!r}, which is not supported")
        return found

    def ignore(self, *names: str) -> None:
        """Fields that change no output in this family."""
        self._taken.update(names)

    def finish(self) -> None:
        """Raises ``UserError`` where a field was neither taken nor is known to change nothing."""
        left = sorted(set(self._data) - self._taken - IGNORED)
        left = [name for name in left if self._data[name] is not None and not name.startswith("_")]
        if left:
            name = left[0]
            raise UserError(f"{self.where}: unknown field {name} = {self._data[name]!r}: it may change the output")

    def default(self, **values: Any) -> None:
        """What the family's own config says of fields that are absent here."""
        self._data = {**values, **self._data}

    @property
    def names(self) -> list[str]:
        """Of all fields that are there."""
        return list(self._data)

    def has(self, name: str) -> bool:
        """Whether it is there and not null."""
        return self._data.get(name) is not None

    def nested(self, name: str, default: Mapping[str, Any] | None = None) -> "Fields":
        """The fields of a mapping; its :meth:`finish` is the caller's to call."""
        return Fields(self.take(name, dict, {} if default is None else default), f"{self.where}: {name}")
