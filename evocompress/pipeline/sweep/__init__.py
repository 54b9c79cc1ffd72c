"""Many runs that differ in some settings: what they are, and what is kept of them."""

from evocompress.pipeline.sweep.config import SweepConfig, load_sweep
from evocompress.pipeline.sweep.folder import SweepFolder, begin_sweep, check_sweep
from evocompress.pipeline.sweep.outcome import TrialOutcome, failures
from evocompress.pipeline.sweep.trials import Trial, check_groups, samples

__all__ = [
    "SweepConfig",
    "SweepFolder",
    "Trial",
    "TrialOutcome",
    "begin_sweep",
    "check_sweep",
    "check_groups",
    "failures",
    "load_sweep",
    "samples",
]
