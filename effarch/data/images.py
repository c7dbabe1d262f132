"""Labelled images, held in memory: the same split for the same config, and rows as training and scoring read them."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import pydantic

from effarch.config import Config, UserError
from effarch.registry import Choice, register


class ImagesConfig(Config):
    """Base of image sets, chosen by ``type``: which, and how they are split."""

    test_fraction: float = pydantic.Field(0.2, gt=0, lt=1, description="of each class that is the test set")
    validation_fraction: float = pydantic.Field(
        0.1, gt=0, lt=1, description="of each class in the rest that is scored while training"
    )
    split_seed: int = pydantic.Field(0, ge=0, lt=2**32, description="of the split; another one is another test set")

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """All images ``[N, height, width, channels]`` float32 of about unit size, and their classes ``[N]`` int32."""
        raise NotImplementedError(f"{type(self).__name__} has no read")


@register("digits", kind="images")
class Digits(ImagesConfig):
    """The 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn (UCI, Alpaydin and Kaynak 1998)."""

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UserError("data: expected the extra `images` to be installed, got no scikit-learn") from error
        found = load_digits()
        return (found.images[..., None] / 8 - 1).astype(np.float32), found.target.astype(np.int32)


ImagesChoice = Annotated[ImagesConfig, Choice("images")]


class ImageRows:
    """Images as rows to draw from, as :class:`effarch.data.batches.Batches` wants them.

    Args:
      images: ``[N, height, width, channels]`` float32. labels: ``[N]`` int32 classes.
      tokens: that a model makes of an image; only counted.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, tokens: int) -> None:
        self.images, self.labels, self.tokens = images, labels, tokens

    @property
    def seq_len(self) -> int:
        """Tokens per image."""
        return self.tokens

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """``inputs``, ``labels`` and ``weights`` (1) of some images; ``len(self)`` and above give weight 0."""
        indices = np.asarray(indices, np.int64)
        inside = indices < len(self)
        at = np.where(inside, indices, 0)
        return {"inputs": self.images[at], "labels": self.labels[at], "weights": inside.astype(np.float32)}

    def in_order(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Every image once, in order; the last batch is filled up with rows of weight 0."""
        for start in range(0, len(self), batch_size):
            yield self.take(np.arange(start, start + batch_size))


@dataclasses.dataclass(frozen=True)
class ImageSets:
    """A split image set.

    Attributes:
      train: what steps are taken on. validation: what may be scored meanwhile. test: scored once, at the end.
      digest: SHA-256 of all images and classes, before the split.
    """

    train: ImageRows
    validation: ImageRows
    test: ImageRows
    digest: str


def stratified(labels: np.ndarray, fraction: float, seed: int, stream: int) -> np.ndarray:
    """Which of ``labels`` are held out, bool: of each class ``fraction``, rounded, at least one and never all.

    Args:
      labels: ``[N]`` classes. fraction: in (0, 1). seed, stream: of the draw; other streams draw independently.

    Raises:
      UserError: a class of fewer than two.
    """
    held = np.zeros(len(labels), bool)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream])))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise UserError(f"data: expected at least two images of each class to split, got one of class {label}")
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held[rng.permutation(members)[:count]] = True
    return held


def image_sets(config: ImagesConfig, tokens: int) -> ImageSets:
    """The images of a config, split; a pure function of it.

    Args:
      config: which. tokens: that a model makes of an image.

    Raises:
      UserError: the images cannot be read or split.
    """
    images, labels = config.read()
    test = stratified(labels, config.test_fraction, config.split_seed, 0)
    rest = np.flatnonzero(~test)
    validation = stratified(labels[rest], config.validation_fraction, config.split_seed, 1)
    sets = {"test": np.flatnonzero(test), "validation": rest[validation], "train": rest[~validation]}
    rows = {name: ImageRows(images[at], labels[at], tokens) for name, at in sets.items()}
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return ImageSets(rows["train"], rows["validation"], rows["test"], digest)
