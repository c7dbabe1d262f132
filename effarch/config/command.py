"""The one grammar of every command line: ``command [POSITIONAL ...] [key=value ...] [--flag ...]``."""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from effarch.config.base import Config, UserError, did_you_mean
from effarch.config.load import load, to_yaml
from effarch.config.schema import listing

C = TypeVar("C", bound=Config)

FLAGS = {
    "help": "this text",
    "print_config": "print the resolved config as YAML and stop",
    "dry_run": "build everything abstractly and stop",
}
USAGE_ERROR = 2  # exit code
INTERRUPTED = 130  # exit code

_OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=", re.ASCII)


def parse_arguments(argv: Sequence[str]) -> tuple[list[str], list[str], set[str]]:
    """Splits a command line into positionals, ``key=value`` overrides and flags.

    ``--key value``, ``--key=value`` and ``key=value`` mean the same, and so do dashes and underscores in keys. After a
    bare ``--`` everything is a positional.

    Args:
      argv: the arguments, without the program's name.

    Returns:
      Positionals; overrides as ``key=value``; flags, a subset of ``help``, ``print_config`` and ``dry_run``.

    Raises:
      UserError: an option without a value, or one that begins with a single dash.
    """
    positionals: list[str] = []
    overrides: list[str] = []
    flags: set[str] = set()
    problems: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if word == "--":
            positionals += rest
            break
        if word == "-h" or (word.startswith("--") and not equals and name in FLAGS):
            flags.add("help" if word == "-h" else name)
        elif word.startswith("--") and equals:
            overrides.append(f"{name}={value}")
        elif word.startswith("--") and rest and not rest[0].startswith("--"):
            overrides.append(f"{name}={rest.pop(0)}")
        elif word.startswith("--"):
            problems.append(f"{word}: expected a value ({word}=VALUE){did_you_mean(name, FLAGS)}")
        elif _OVERRIDE.match(word):
            key, _, value = word.partition("=")
            overrides.append(f"{key.replace('-', '_')}={value}")
        elif word.startswith("-") and len(word) > 1:
            problems.append(f'{word}: expected key=value, --key value or a flag, got "{word}"')
        else:
            positionals.append(word)
    if problems:
        raise UserError(*problems)
    return positionals, overrides, flags


def main(
    schema: type[C] | Callable[[str | None], type[C]],
    run: Callable[..., int | None],
    *,
    argv: Sequence[str] | None = None,
    prog: str,
    description: str = "",
    positional: str | tuple[str, ...] = "config",
    required: bool = False,
) -> int:
    """Parses a command line, builds the config and calls ``run(config)``; the caller does ``sys.exit(main(...))``.

    Args:
      schema: the class of the config, or what tells it from the path of the YAML file.
      run: called with the config, and with ``dry_run=True`` for ``--dry-run`` if it has such a parameter; returns an
        exit code or None.
      argv: the arguments (default: those of this process).
      prog: the command as the user types it, for ``--help``.
      description: what the command does, for ``--help``.
      positional: ``"config"`` takes one YAML file; names of keys of the schema take a value each, in their order.
      required: whether the positionals must be there.

    Returns:
      The exit code: what ``run`` returned, or 0; 2 after a user's mistake (``error:`` lines on stderr); 130 after
      Ctrl-C.
    """
    try:
        words, overrides, flags = parse_arguments(sys.argv[1:] if argv is None else argv)
        if "help" in flags:
            print(_help(_chosen(schema, words[0] if words else None), prog, description, positional, required))
            return 0
        path = _take_positionals(words, overrides, positional, required)
        config = load(_chosen(schema, path), path, overrides)
        if "print_config" in flags:
            print(to_yaml(config), end="")
            return 0
        extra: dict[str, Any] = {}
        if "dry_run" in flags:
            if "dry_run" not in inspect.signature(run).parameters:
                raise UserError(f"--dry-run: {prog} has nothing to build")
            extra["dry_run"] = True
        return run(config, **extra) or 0
    except UserError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _chosen(schema: type[C] | Callable[[str | None], type[C]], path: str | None) -> type[C]:
    return cast(type[C], schema) if isinstance(schema, type) else schema(path)


def _take_positionals(
    words: list[str], overrides: list[str], positional: str | tuple[str, ...], required: bool
) -> str | None:
    """The path of the YAML file; positionals that are keys become overrides."""
    names = (positional,) if isinstance(positional, str) else positional
    surplus = [f'expected key=value, got "{word}"' for word in words[len(names) :]]
    if required:
        surplus += [f"missing {_placeholder(name)}" for name in names[len(words) :]]
    if surplus:
        raise UserError(*surplus)
    if positional == "config":
        return words[0] if words else None
    overrides[:0] = [f"{name}={word}" for name, word in zip(names, words, strict=False)]
    return None


def _placeholder(name: str) -> str:
    return "CONFIG.yaml" if name == "config" else name.upper()


def _help(schema: type[Config], prog: str, description: str, positional: str | tuple[str, ...], required: bool) -> str:
    places = [_placeholder(name) for name in ((positional,) if isinstance(positional, str) else positional)]
    words = [prog, *(place if required else f"[{place}]" for place in places), "[key=value ...]"]
    flags = [f"--{name.replace('_', '-')}" for name in FLAGS]
    width = max(len(flag) for flag in flags)
    return "\n".join(
        [
            "usage: " + " ".join(word for word in words if word) + " [" + " | ".join(flags) + "]",
            *(["", description.strip()] if description else []),
            "",
            *(f"  {flag:{width}}  {text}" for flag, text in zip(flags, FLAGS.values(), strict=True)),
            "",
            "keys (values in YAML; --key value and --key=value mean the same as key=value):",
            "",
            listing(schema),
        ]
    )
