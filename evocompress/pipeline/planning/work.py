"""Work that takes time, and how long a device takes for it: a roofline."""

from __future__ import annotations

from dataclasses import dataclass, fields

from evocompress.pipeline.planning.device import Device


@dataclass(frozen=True)
class Work:
    """Amounts of work, which add up.

    Attributes:
        products: Floating-point operations of matrix products in the model's dtype.
        weights: Bytes of weights that these read from the device's memory.
        statistics: Floating-point operations of matrix products in float32.
        sweep: The same of SparseGPT, by `sweep_operations`.
        removal: The same of structured OBS, by `removal_operations`.
        logits: Logits that are compared with the dense model's.
        moved: Bytes read or written in the device's memory beside all that.
        brought: Bytes that come from main memory.
        written: Bytes written to disk.
        launches: Kernels that a GPU starts.
    """

    products: float = 0.0
    weights: float = 0.0
    statistics: float = 0.0
    sweep: float = 0.0
    removal: float = 0.0
    logits: float = 0.0
    moved: float = 0.0
    brought: float = 0.0
    written: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))

    def __mul__(self, times: float) -> Work:
        return Work(*(getattr(self, f.name) * times for f in fields(Work)))

    def seconds(self, device: Device, dtype: str) -> float:
        """How long a device takes.

        Products wait for the weights or for the arithmetic, whichever takes longer (the
        roofline of Williams et al. 2009); everything else comes one after the other.
        """
        products = max(
            self.products / device.products[dtype],
            self.weights / device.bandwidth,
            self.brought / device.link,
        )
        return (
            products
            + self.statistics / device.products["float32"]
            + self.sweep / device.sweep
            + self.removal / device.removal
            + self.logits / device.logits
            + self.moved / device.bandwidth
            + self.written / device.disk
            + self.launches * device.launch
        )


def sweep_operations(outputs: int, inputs: int, levels: int) -> float:
    """Of SparseGPT for a matrix (outputs, inputs): the inverse Hessian's factor, and a sweep.

    A column's error is taken from all columns behind it, 2·out·in²/2 operations for each level;
    a Cholesky factor and a triangular inverse take 2·in³/3 and more, here 2·in³.
    """
    return 2.0 * inputs**3 + levels * outputs * float(inputs) ** 2


def removal_operations(outputs: int, inputs: int) -> float:
    """Of structured OBS for a matrix (outputs, inputs): each removed column updates three matrices.

    These are the weight (2·out·n operations for each), the inverse Hessian (2·n²) and WᵀW
    (4·n²), summed over n from `inputs` down to 0; the factor and the two square products before
    take 2·in³ and 2·out·in².
    """
    return 4.0 * inputs**3 + 3.0 * outputs * float(inputs) ** 2
