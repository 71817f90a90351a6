"""Reference log-probs of offline pairs on disk, so that later epochs and runs need no reference forward for them.

One SQLite file per rank, all read by every rank; a row is one prompt and completion:

    key    SHA-256 of reference weights, processor and library version, dtype, prompt tokens, image hashes, completion
    value  the completion's token log-probs, as float32 (float64 models: float64)

A crash loses at most what was not yet committed; a row that does not fit its completion counts as missing.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import transformers
from torch import Tensor

from common.chat import ChatEncoder
from common.errors import UserError
from common.fingerprint import model_hash
from learner.encoded import EncodedPair, rows_of
from learner.logps import CompletionLogps
from learner.tree import TreeBatch

FILE = "reference_{rank}.sqlite"
TIMEOUT_S = 60.0
_TABLE = "CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"


class ReferenceCache:
    """Look-up before the reference's forward.

    Args:
        directory: where the files are; made if missing.
        rank: of this process; it writes its own file only.
        identity: hash of everything but the pair that the log-probs depend on (see `identity`).

    Raises:
        UserError: the directory cannot be written, or holds a file that is no such cache.
    """

    def __init__(self, directory: Path, rank: int, identity: str) -> None:
        self._identity = identity
        self._directory = directory
        self.num_hits = 0
        """Pairs that needed no reference forward."""
        self.num_misses = 0
        """Offline pairs that did."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._own = sqlite3.connect(
                directory / FILE.format(rank=rank),
                timeout=TIMEOUT_S,
                check_same_thread=False,
            )
            self._own.execute("PRAGMA synchronous = NORMAL")
            self._own.execute(_TABLE)
            self._own.commit()
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"learner.fast.reference_cache: expected a folder that can be written and holds this program's files, "
                f"got {directory}: {error}; delete it, name another, or set reference_cache = off"
            ) from error
        self._others: dict[Path, sqlite3.Connection] = {}

    def logps(
        self,
        batch: TreeBatch,
        forward: Callable[[TreeBatch], CompletionLogps],
        rebatch: Callable[[list[EncodedPair]], TreeBatch],
    ) -> CompletionLogps:
        """The reference's log-probs of a batch; `forward` runs for the pairs alone that are not known."""
        num = len(batch.pairs)
        sides = rows_of(batch.pairs)
        crops = [
            index for index, pair in enumerate(batch.pairs) if pair.cropped is not None
        ]
        owners = [*range(num), *range(num), *crops]
        offline = {
            index
            for index, pair in enumerate(batch.pairs)
            if pair.pair.weight_version is None
        }
        keys = {
            row: self._key(*side)
            for row, side in enumerate(sides)
            if owners[row] in offline
        }
        values = self._read(
            {row: (key, len(sides[row][1])) for row, key in keys.items()}
        )
        missing = sorted(
            {owner for row, owner in enumerate(owners) if row not in values}
        )
        self.num_hits += num - len(missing)
        self.num_misses += len(offline & set(missing))
        if missing:
            part = (
                batch
                if len(missing) == num
                else rebatch([batch.pairs[index] for index in missing])
            )
            rows = [row for row, owner in enumerate(owners) if owner in missing]
            logps = forward(part).token_logps
            fresh = {
                row: logps[place, : len(sides[row][1])].cpu()
                for place, row in enumerate(rows)
            }
            self._write(
                {keys[row]: value for row, value in fresh.items() if row in keys}
            )
            values |= fresh
        table = torch.zeros(batch.mask.shape, dtype=values[0].dtype)
        for row, value in values.items():
            table[row, : len(value)] = value
        return CompletionLogps(table.to(batch.mask.device), batch.mask)

    def close(self) -> None:
        """Close all files."""
        for connection in (self._own, *self._others.values()):
            connection.close()

    def _key(self, pair: EncodedPair, completion: tuple[int, ...]) -> bytes:
        digest = hashlib.sha256(self._identity.encode())
        tokens, images = pair.prompt_key
        for part in (tokens, images, completion):
            digest.update(repr(part).encode())
        return digest.digest()

    def _read(self, wanted: Mapping[int, tuple[bytes, int]]) -> dict[int, Tensor]:
        """What is known of these rows' keys, if it has their length."""
        files = self._files()
        found: dict[int, Tensor] = {}
        for row, (key, length) in wanted.items():
            for file in files:
                try:
                    answer = file.execute(
                        "SELECT value FROM logps WHERE key = ?", (key,)
                    ).fetchone()
                except sqlite3.Error:
                    continue
                if answer is not None and len(answer[0]) in (4 * length, 8 * length):
                    dtype = (
                        torch.float32 if len(answer[0]) == 4 * length else torch.float64
                    )
                    found[row] = torch.frombuffer(bytearray(answer[0]), dtype=dtype)
                    break
        return found

    def _write(self, values: dict[bytes, Tensor]) -> None:
        rows = [
            (key, value.numpy().tobytes())
            for key, value in values.items()
            if value.isfinite().all()
        ]
        if rows:
            with self._own:
                self._own.executemany(
                    "INSERT OR REPLACE INTO logps VALUES (?, ?)", rows
                )

    def _files(self) -> list[sqlite3.Connection]:
        """This rank's file first, then those of the others that exist by now, read-only."""
        own = {Path(row[2]) for row in self._own.execute("PRAGMA database_list")}
        for path in sorted(self._directory.glob(FILE.format(rank="*"))):
            if path.resolve() not in own and path not in self._others:
                self._others[path] = sqlite3.connect(
                    f"{path.resolve().as_uri()}?mode=ro",
                    uri=True,
                    timeout=TIMEOUT_S,
                    check_same_thread=False,
                )
        return [self._own, *self._others.values()]


def identity(encoder: ChatEncoder, dtype: torch.dtype, quantize: str = "none") -> str:
    """What reference log-probs depend on beside the pair: weights, processor and its versions, precision."""
    parts = [model_hash(encoder.model_path), transformers.__version__, str(dtype)]
    parts += [] if quantize == "none" else [quantize]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
