"""Images for the scenes of tests."""

from dataclasses import dataclass

from data.images import reduced
from data.scene import at_most
from data.types import PixelArray


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Pixels in memory."""

    array: PixelArray

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.array.shape[0], self.array.shape[1]

    def pixels(self, reduction: int) -> PixelArray:
        """Means of squares."""
        return reduced(self.array, reduction)

    def at_most(self, size_hw: tuple[int, int]) -> PixelArray:
        """As the function `at_most`."""
        return at_most(self, size_hw)
