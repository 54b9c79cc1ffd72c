"""The arrays of estimates: one checksummed safetensors file each, beside the journal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from evocompress.core.errors import RunError
from evocompress.core.files import naming_disk_errors, replacing
from evocompress.core.regular import check_regular
from evocompress.core.requests import Estimate, Estimation


class EstimateFiles:
    """A folder of estimates, which have different numbers of values for different units.

    A file holds the values of all rows one after the other (float64), the length of each row
    (int64), and the units' names in its metadata. The same estimate gives the same bytes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, request: Estimate) -> Path:
        """The file of a request's answer."""
        asked = json.dumps([request.candidate.id, request.kind, request.micro_batches])
        digest = hashlib.sha256(asked.encode()).hexdigest()[:16]
        return self._folder / f"{request.kind}-{digest}.safetensors"

    def write(self, estimation: Estimation) -> str:
        """Writes a file, whole or not at all, and returns its SHA-256."""
        flat = [value for row in estimation.rows for value in row]
        arrays = {
            "values": np.array(flat, dtype=np.float64),
            "lengths": np.array([len(row) for row in estimation.rows], dtype=np.int64),
        }
        content = save(arrays, metadata={"units": json.dumps(estimation.units)})
        path = self.path(estimation.request)
        path.parent.mkdir(exist_ok=True)
        with naming_disk_errors(path), replacing(path) as temporary:
            temporary.write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    def read(self, request: Estimate, sha256: str) -> Estimation | None:
        """The answer to a request, or ``None`` where the file is missing.

        Raises:
            RunError: The file is damaged.
        """
        path = self.path(request)
        if not path.exists():
            return None
        check_regular(path)
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise RunError(f"{path} is damaged: delete it and resume; it is then made again")
        with safe_open(path, framework="numpy") as file:
            units: list[str] = json.loads(file.metadata()["units"])
            values, lengths = file.get_tensor("values").tolist(), file.get_tensor("lengths")
        ends = np.cumsum(lengths).tolist()
        rows = tuple(
            tuple(values[end - length : end])
            for length, end in zip(lengths.tolist(), ends, strict=True)
        )
        return Estimation(request, tuple(units), rows)
