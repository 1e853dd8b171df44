"""How much work and memory a checkpoint may ask for before it is refused.

A file can declare far more than it contains (shapes, zip sizes, self-references). Every reader checks what
it is asked for against these numbers *before* it allocates. Real checkpoints stay far below them: a ViT-H
detector with its Adam state needs some 200 thousand pickle opcodes.
"""

from __future__ import annotations

from weights.errors import CheckpointError

MAX_OPCODES = 1_000_000  # pickle opcodes plus the items that an opcode copies
MAX_PICKLE_BYTES = 256 << 20  # the pickle inside a torch zip file, which holds no tensor data
MAX_TENSORS = 100_000
MAX_DIRECTORY_BYTES = 8 << 20  # list of contents of a zip file; a hundred thousand entries fit
MAX_STEPS = 500_000  # reads of an HDF5 file's structure; a tensor takes about ten
MAX_NAME = 1024  # characters of a tensor name
_MAX_DIMS = 32  # axes of a tensor; numpy 1.x allows no more
MAX_JSON_BYTES = 16 << 20  # header of a safetensors file; a hundred thousand tensors fit
_MAX_EXPANSION = 4  # bytes of all tensors over bytes of the file: views that overlap, broadcast strides
_MAX_INFLATION = 20  # bytes of decompressed zip entries over bytes of the file; weights hardly compress
_SMALL = 64 << 20  # below this many bytes the two ratios above do not matter


class Budget:
    """Counts what one file asked for and refuses the request that goes over the limit."""

    def __init__(self, limit: int, what: str) -> None:
        self.left = limit
        self.what = what

    def spend(self, amount: int) -> None:
        """Take ``amount`` units; raises CheckpointError when they are used up."""
        self.left -= amount
        if self.left < 0:
            raise CheckpointError(f"The file asks for too much: {self.what}.")


def tensor_budget(file_size: int) -> Budget:
    """Bytes that all tensors of a file of ``file_size`` bytes may take together."""
    limit = max(_SMALL, _MAX_EXPANSION * file_size)
    return Budget(limit, f"its tensors would take over {limit >> 20} MiB, the file has {file_size} bytes")


def inflation_budget(file_size: int) -> Budget:
    """Bytes that all decompressed zip entries of a file of ``file_size`` bytes may take together."""
    limit = max(_SMALL, _MAX_INFLATION * file_size)
    return Budget(limit, f"decompressed it would take over {limit >> 20} MiB, the file has {file_size} bytes")


def check_sizes(sizes: object, what: str) -> tuple[int, ...]:
    """``sizes`` as a tuple of small non-negative ints, or CheckpointError naming ``what``."""
    if not isinstance(sizes, (tuple, list)) or len(sizes) > _MAX_DIMS:
        raise CheckpointError(f"{what} has no valid shape.")
    for size in sizes:
        if type(size) is not int or not 0 <= size < 1 << 48:
            raise CheckpointError(f"{what} has an invalid size along one axis.")
    return tuple(sizes)


def check_shape(shape: object, what: str) -> tuple[int, ...]:
    """``shape`` as :func:`check_sizes`, and one that numpy can represent even where an axis is empty."""
    sizes = check_sizes(shape, what)
    if element_count(tuple(size for size in sizes if size)) >= 1 << 58:
        raise CheckpointError(f"{what} has more elements than any memory: its declared shape does not fit.")
    return sizes


def element_count(shape: tuple[int, ...]) -> int:
    """Number of elements of ``shape`` as an unbounded int (numpy's product would wrap around)."""
    count = 1
    for size in shape:
        count *= size
    return count
