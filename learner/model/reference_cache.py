"""Reference log-probs of offline pairs on disk, so that later epochs and runs need no reference forward for them.

One SQLite file per rank, all read by every rank; a row is one prompt and completion:

    key    SHA-256 of reference weights, processor and library version, dtype, prompt tokens, image hashes, completion
    value  the completion's token log-probs, as float32 (float64 models: float64)

A crash loses at most what was not yet committed; a value whose size does not fit its completion counts as missing.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor

from common.chat import ChatEncoder
from common.errors import UserError
from common.fingerprint import model_hash
from learner.batch.encoded import EncodedPair, TokenIds, rows_of
from learner.forward.logps import CompletionLogps
from learner.forward.tree import TreeBatch

FILE = "reference_{rank}.sqlite"
TIMEOUT_S = 60.0
_TABLE = "CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
_INSERT = "INSERT OR REPLACE INTO logps VALUES (?, ?)"
_SELECT = "SELECT value FROM logps WHERE key = ?"


Wanted = tuple[bytes, int]
"""Key and number of tokens of a row that is looked up."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a batch: which pair it belongs to, its number of tokens, and its key if it may be kept."""

    owner: int
    length: int
    key: bytes | None


class ReferenceCache:
    """Looks up log-probs before the reference's forward, and keeps what the forward finds.

    Args:
        directory: where the files are; made if missing.
        rank: of this process; it writes only the file of its rank.
        identity: hash of everything but the pair that the log-probs depend on (see `identity`).

    Raises:
        UserError: the directory cannot be written, or holds a file that is no such cache.
    """

    def __init__(self, directory: Path, rank: int, identity: str) -> None:
        self._identity = identity
        self._directory = directory
        self._path = directory / FILE.format(rank=rank)
        self.num_hits = 0
        """Pairs that needed no reference forward."""
        self.num_misses = 0
        """Offline pairs that did."""
        try:
            self._file = _open_for_writing(self._path)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"learner.fast.reference_cache: expected a folder that can be written and holds this program's files, "
                f"got {directory}: {error}; delete it, name another, or set reference_cache = off"
            ) from error
        self._files_of_others: dict[Path, sqlite3.Connection] = {}

    def logps(
        self,
        batch: TreeBatch,
        forward: Callable[[TreeBatch], CompletionLogps],
        rebatch: Callable[[list[EncodedPair]], TreeBatch],
    ) -> CompletionLogps:
        """The reference's log-probs of a batch.

        Args:
            forward: runs the reference, for the pairs alone that have a row without a stored value.
            rebatch: makes the batch of these pairs.
        """
        rows = self._rows(batch.pairs)
        wanted: dict[int, Wanted] = {}
        for index, row in enumerate(rows):
            if row.key is not None:
                wanted[index] = (row.key, row.length)
        values = self.read(wanted)
        # One missing row makes its whole pair missing: the forward takes pairs.
        missing: set[int] = set()
        for index, row in enumerate(rows):
            if index not in values:
                missing.add(row.owner)
        self._count(batch.pairs, missing)
        if missing:
            part = batch
            if len(missing) < len(batch.pairs):
                missing_pairs = [batch.pairs[owner] for owner in sorted(missing)]
                part = rebatch(missing_pairs)
            computed = self._compute(rows, missing, forward(part))
            self._keep(rows, computed)
            values |= computed
        return _completion_logps(values, batch.mask)

    def close(self) -> None:
        """Close all files."""
        self._file.close()
        for connection in self._files_of_others.values():
            connection.close()

    def key(
        self,
        pair: EncodedPair,
        completion: TokenIds,
    ) -> bytes:
        """The key of a prompt with this completion."""
        digest = hashlib.sha256(self._identity.encode())
        # The images by content and view, so a crop has a key of its own.
        tokens, images = pair.prompt_key
        for part in (tokens, images, completion):
            text = repr(part)
            digest.update(text.encode())
        return digest.digest()

    def read(self, wanted: Mapping[int, Wanted]) -> dict[int, Tensor]:
        """The stored log-probs of rows.

        Args:
            wanted: row -> its key and number of tokens.

        Returns:
            row -> log-probs, for rows that a file has.
        """
        files = self._files()
        values: dict[int, Tensor] = {}
        for row, (key, length) in wanted.items():
            value = _stored(files, key, length)
            if value is not None:
                values[row] = value
        return values

    def write(self, values: Mapping[bytes, Tensor]) -> None:
        """Store log-probs by key in the file of this rank; what is not finite is left out."""
        entries: list[tuple[bytes, bytes]] = []
        for key, value in values.items():
            if value.isfinite().all():
                data = value.numpy().tobytes()
                entries.append((key, data))
        if entries:
            # One transaction, committed at the end of the block.
            with self._file:
                self._file.executemany(_INSERT, entries)

    def _rows(self, pairs: Sequence[EncodedPair]) -> list[_Row]:
        """The rows of a forward of these pairs. Online pairs are seen once, so their rows have no key."""
        # The blocks of `rows_of`: all chosen, all rejected, then those behind crops.
        cropped = [i for i, pair in enumerate(pairs) if pair.cropped is not None]
        owners = [*range(len(pairs)), *range(len(pairs)), *cropped]
        rows: list[_Row] = []
        for owner, (pair, completion) in zip(owners, rows_of(pairs), strict=True):
            key: bytes | None = None
            if _is_offline(pair):
                key = self.key(pair, completion)
            rows.append(_Row(owner, len(completion), key))
        return rows

    def _count(self, pairs: Sequence[EncodedPair], missing: set[int]) -> None:
        self.num_hits += len(pairs) - len(missing)
        for index in missing:
            # Online pairs cannot hit, so they are no misses either.
            if _is_offline(pairs[index]):
                self.num_misses += 1

    def _compute(
        self,
        rows: Sequence[_Row],
        missing: set[int],
        logps: CompletionLogps,
    ) -> dict[int, Tensor]:
        """Row index -> log-probs, of the rows of all missing pairs, in the order of the forward that gave `logps`."""
        indices = [i for i, row in enumerate(rows) if row.owner in missing]
        computed: dict[int, Tensor] = {}
        for place, index in enumerate(indices):
            length = rows[index].length
            computed[index] = logps.token_logps[place, :length].cpu()
        return computed

    def _keep(self, rows: Sequence[_Row], computed: Mapping[int, Tensor]) -> None:
        to_write: dict[bytes, Tensor] = {}
        for index, value in computed.items():
            key = rows[index].key
            if key is not None:
                to_write[key] = value
        self.write(to_write)

    def _files(self) -> list[sqlite3.Connection]:
        """This rank's file first, then those of the others that exist by now, read-only."""
        for path in sorted(self._directory.glob(FILE.format(rank="*"))):
            if path != self._path and path not in self._files_of_others:
                self._files_of_others[path] = _open_read_only(path)
        return [self._file, *self._files_of_others.values()]


def _open_for_writing(path: Path) -> sqlite3.Connection:
    """This rank's file, made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Calls may come from different threads, but one at a time.
    file = sqlite3.connect(path, timeout=TIMEOUT_S, check_same_thread=False)
    # Fewer waits for the disk: after a power cut the cache may have to be made again.
    file.execute("PRAGMA synchronous = NORMAL")
    file.execute(_TABLE)
    file.commit()
    return file


def _open_read_only(path: Path) -> sqlite3.Connection:
    """Another rank's file, which that rank may be writing to."""
    address = f"{path.resolve().as_uri()}?mode=ro"
    return sqlite3.connect(
        address, uri=True, timeout=TIMEOUT_S, check_same_thread=False
    )


def _completion_logps(
    values: Mapping[int, Tensor],
    mask: Tensor,
) -> CompletionLogps:
    """Log-probs of single rows as a table of the mask's shape, [rows, columns], on its device."""
    table = torch.zeros(mask.shape, dtype=values[0].dtype)
    for index, value in values.items():
        table[index, : len(value)] = value
    return CompletionLogps(table.to(mask.device), mask)


def _stored(
    files: Sequence[sqlite3.Connection],
    key: bytes,
    length: int,
) -> Tensor | None:
    """The first value of this key that fits the number of tokens."""
    for file in files:
        try:
            row = file.execute(_SELECT, (key,)).fetchone()
        except sqlite3.Error:
            # Another rank's file may be without its table yet.
            continue
        if row is None:
            continue
        # A copy that can be written to, as torch wants it.
        data = bytearray(row[0])
        if len(data) == 4 * length:
            return torch.frombuffer(data, dtype=torch.float32)
        if len(data) == 8 * length:
            return torch.frombuffer(data, dtype=torch.float64)
    return None


def _is_offline(pair: EncodedPair) -> bool:
    return pair.pair.weight_version is None


def identity(
    encoder: ChatEncoder,
    dtype: torch.dtype,
    quantize: str = "none",
) -> str:
    """Hash of what reference log-probs depend on beside the pair: weights, processor and its versions, precision."""
    weights = model_hash(encoder.model_path)
    parts = [weights, transformers.__version__, str(dtype)]
    # Full precision adds no part: its key is that of caches without quantisation.
    if quantize != "none":
        parts.append(quantize)
    # Nor do pictures of the size that the model's files say.
    if encoder.picture_sizes.identity:
        parts.append(encoder.picture_sizes.identity)
    joined = "\0".join(parts)
    return hashlib.sha256(joined.encode()).hexdigest()
