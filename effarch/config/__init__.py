"""Configs: frozen and checked; read from YAML and ``key=value``; every problem reported at once, one line each."""

from effarch.config.alternatives import Alternatives
from effarch.config.base import Config, UserError, did_you_mean
from effarch.config.command import main, parse_arguments
from effarch.config.load import load, to_yaml

__all__ = [
    "Alternatives",
    "Config",
    "UserError",
    "did_you_mean",
    "load",
    "main",
    "parse_arguments",
    "to_yaml",
]
