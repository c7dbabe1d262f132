"""What the figures of a plan take for granted, in words."""

from effarch.bench.targets import Target
from effarch.eval.table import count


def assumptions(target: Target, what: str) -> tuple[str, ...]:
    """One sentence each."""
    found = [
        "memory is what the compiler allots; what the runtime and the host keep is not in it",
        "activations are what the backward pass keeps, from shapes; the temporaries hold them, gradients and buffers"
        if what == "train"
        else "what is carried between calls is split over rows alone",
        "FLOPs are those of matrix products (a multiply-add is two), bytes those of all instructions; loops multiplied",
        "loops over blocks of attention run as often as one document per row needs, on the device that needs most",
    ]
    if not target.peaks:
        return (*found, "no time is estimated: nobody states the peaks of this machine")
    rates = ", ".join(f"{name} {count(peak)}FLOP/s" for name, peak in target.peaks.items())
    found += [
        f"a step takes as long as the longest of its parts, all of them at their peak: {rates}; memory "
        f"{count(target.bandwidth)}B/s",
    ]
    if target.chips > 1:
        far = (
            f", and {count(target.network)}B/s between hosts of {target.domain}" if target.chips > target.domain else ""
        )
        found += [f"collectives run on rings, all links of a chip busy: {count(target.link)}B/s that it sends{far}"]
    return tuple(found)
