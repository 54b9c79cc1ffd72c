"""What this computer can do for evocompress: packages, devices, features, and how fast it is.

`examine` gathers the facts, `broken` and `limits` say what follows from them. Nothing here imports
torch before the packages were looked at, so that a broken torch is told like any other package.
"""

from evocompress.pipeline.doctor.examination import Examination, examine
from evocompress.pipeline.doctor.findings import broken, limits
from evocompress.pipeline.doctor.packages import installed_line
from evocompress.pipeline.doctor.text import feature_rows, machine_rows, package_rows, speed_rows

__all__ = [
    "Examination",
    "broken",
    "examine",
    "feature_rows",
    "installed_line",
    "limits",
    "machine_rows",
    "package_rows",
    "speed_rows",
]
