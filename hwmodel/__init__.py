"""What a machine costs: numbers in, seconds out.

accelerator   Accelerator, Memory, Dma, Efficiency: the machine's numbers
presets       get, PRESETS: named machines, a source beside each number
latency       roofline, from_estimates -> OpLatency: how long each op takes
simulator     simulate -> Timeline: ops against asynchronous copies, the reference
queue         the same stalls in closed form, for JAX arrays and fast host loops
"""

from hwmodel.accelerator import (
    Accelerator,
    Dma,
    Efficiency,
    Memory,
    load_accelerator,
)
from hwmodel.latency import (
    LatencyKind,
    OpLatency,
    copy_s,
    from_estimates,
    op_latency_s,
    roofline,
    spare_s,
)
from hwmodel.presets import PRESETS, get
from hwmodel.simulator import Copy, Timeline, simulate

__all__ = [
    "PRESETS",
    "Accelerator",
    "Copy",
    "Dma",
    "Efficiency",
    "LatencyKind",
    "Memory",
    "OpLatency",
    "Timeline",
    "copy_s",
    "from_estimates",
    "get",
    "load_accelerator",
    "op_latency_s",
    "roofline",
    "simulate",
    "spare_s",
]
