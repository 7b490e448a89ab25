"""What is prepared once for a batch size and used many times: compiled networks."""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

Prepared = TypeVar("Prepared")
Prepared_co = TypeVar("Prepared_co", covariant=True)

MOST_SIZES = 8


class Prepare(Protocol[Prepared_co]):
    """Prepares for a batch size; `variant` is whatever else it depends on."""

    def __call__(self, size: int, variant: int) -> Prepared_co:
        """What this batch size needs, in this variant."""
        ...


def rounded_up(count: int) -> int:
    """The batch size to prepare for `count` frames: at most a quarter more, and four sizes for each doubling.

    Episodes end at any time and bring their last frames along, so that nearly every count comes up once in a long run.

    Example:
        >>> [rounded_up(n) for n in (1, 4, 7, 8, 9, 11, 16, 17, 33, 1000)]
        [1, 4, 7, 8, 10, 12, 16, 20, 40, 1024]
    """
    step = 1 << max(0, (count - 1).bit_length() - 3)
    return -(-count // step) * step


class PreparedSizes(Generic[Prepared]):
    """The last few batch sizes that were prepared, the least recently used one dropped first.

    Args:
        prepare: Prepares for a size and a variant.
        most: How many to keep.

    Example:
        >>> sizes = PreparedSizes(lambda size, variant: f"for {size}")
        >>> sizes.get(9), sizes.get(10)
        ('for 10', 'for 10')
        >>> sizes.prepare(9)
        'for 9'
        >>> sizes.get(9)
        'for 9'
    """

    def __init__(self, prepare: Prepare[Prepared], most: int = MOST_SIZES) -> None:
        self._prepare, self._most = prepare, most
        self._prepared: OrderedDict[tuple[int, int], Prepared] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prepared)

    def get(self, count: int, variant: int = 0) -> Prepared:
        """What was prepared for exactly `count`, else for `rounded_up(count)`, prepared now where it must be."""
        exact = (count, variant)
        if exact in self._prepared:
            self._prepared.move_to_end(exact)
            return self._prepared[exact]
        return self.prepare(rounded_up(count), variant)

    def prepare(self, size: int, variant: int = 0) -> Prepared:
        """Prepare for exactly this size, where that was not done yet."""
        key = (size, variant)
        if key not in self._prepared:
            while len(self._prepared) >= self._most:
                self._prepared.popitem(last=False)
            self._prepared[key] = self._prepare(size, variant)
        self._prepared.move_to_end(key)
        return self._prepared[key]
