"""Named machines, with the source of every number beside it.

A preset is one JAX device: a whole chip of TPU v4 and v5p, whose two TensorCores run as
one (megacore), and one TensorCore of a TPU7x chip, which JAX shows as two devices.

Sources, by the short names used below:
  jax     "TPU Hardware Reference", docs.jax.dev/en/latest/pallas/tpu/hardware.html: per
          TensorCore, bf16 and int8 peaks, HBM bandwidth, VMEM and CMEM capacity.
  cloud   cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, the key specifications.
  v4i     Jouppi et al., "Ten Lessons From Three Generations Shaped Google's TPUv4i",
          ISCA 2021, and Wang et al., arXiv 2305.07440, who plan for this chip.
  xla     cycle estimates in programs that the TPU compiler scheduled for the chip.
  nvidia  H100 and H200 Tensor Core GPU datasheets and the H100 architecture whitepaper,
          dense rates of the SXM modules.
  cuda    CUDA C++ Programming Guide, arithmetic throughput of compute capability 9.0.
  assumed ours; the reason, if there is one, stands beside it.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Mapping

from hwmodel.accelerator import (
    Accelerator,
    Dma,
    Efficiency,
    Memory,
    load_accelerator,
)

MIB = 2**20
GIB = 2**30

# TPU defaults. Each is the v5e's, carried over to the others.
_ALIGNMENT_BYTES = 512  # assumed
# xla: peaks of planned VMEM are exactly 112 of 128 MiB and 48 of 64 MiB.
_VMEM_RESERVED_BYTES = 16 * MIB
# xla: single ops move at sharp modes of 492 bytes/cycle, 0.9 of v5e's bandwidth.
_DMA_BANDWIDTH_SHARE = 0.9
# xla: ops on v5e slow down by about 1 cycle per 400 bytes moved out of VMEM, of the 546
# that its HBM delivers per cycle.
_SLOW_READ_SHARE = 400 / 546
# assumed: what an op wholly in fast memory moves, its overheads included.
_FAST_BYTES_PER_CYCLE = 1000
# cloud (v6e): 8 sublanes of 128 lanes, the same in every generation (jax); the number
# of ALUs in each is assumed, 2 up to v4 and 4 from v5 on; one transcendental each per
# cycle is assumed.
_VECTOR_LANES = 8 * 128
# xla: layouts have tiles of 8 x 128, T(8,128), for every element type.
_TILE_ROWS, _TILE_LANES = 8, 128
# What a roofline of StableHLO needs to come out where the compiler's own estimates do,
# on v5e: fitted by examples/calibrate_stablehlo.py on ten programs, and checked on the
# others. `slow` is the copies' share; that compute hides no slow memory traffic is
# xla: estimates with everything in slow memory exceed those without by all of it.
_EFFICIENCY = Efficiency(
    matmul=0.95,
    vector=1.0,
    transcendental=0.19,
    fast=0.73,
    slow=_DMA_BANDWIDTH_SHARE,
    overlap=False,
)


def get(accelerator: str | os.PathLike[str] | Accelerator) -> Accelerator:
    """The accelerator of that name, from that file, or itself.

    Args:
      accelerator: a name in `PRESETS`, the path of a .json or .toml file, or an
        `Accelerator`.
    Raises:
      ValueError: no preset has that name, or the file does not describe an accelerator.
    """
    if isinstance(accelerator, Accelerator):
        return accelerator
    try:
        name = os.fspath(accelerator)
    except TypeError:
        raise ValueError(
            f"accelerator is {accelerator!r}; expected a preset's name, the path of a "
            ".json or .toml file, or an hwmodel.Accelerator."
        ) from None
    if name in PRESETS:
        return PRESETS[name]()
    if os.path.splitext(name)[1].lower() in (".json", ".toml") or os.sep in name:
        return load_accelerator(name)
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"no accelerator is called {name!r}.{hint} Known: {', '.join(PRESETS)}; or "
        "give the path of a .json or .toml file."
    )


@functools.cache
def tpu_v4i() -> Accelerator:
    """TPU v4i, the inference chip of the memory-mapping paper; plans into CMEM."""
    return _tpu(
        "tpu_v4i",
        clock_hz=1.05e9,  # v4i
        cores=1,  # jax
        alus=2,
        # v4i: 128 MiB (134 MB) of CMEM. The 16 MiB VMEM is left to the ops, so that
        # nothing of the CMEM is reserved.
        fast_capacity_bytes=128 * MIB,
        reserved_bytes=0,
        slow_capacity_bytes=8 * GIB,  # v4i; jax
        slow_bandwidth_bytes_per_s=614e9,  # v4i; jax
        bf16_flops_per_s=137e12,  # jax; 138e12 in v4i
        int8_flops_per_s=137e12,  # v4i: int8 runs at the rate of bf16
    )


@functools.cache
def tpu_v4() -> Accelerator:
    """TPU v4, both TensorCores as one device; plans into the CMEM they share."""
    return _tpu(
        "tpu_v4",
        clock_hz=1.05e9,  # assumed, v4i's; agrees with peak / (2 x 4 MXUs of 128 x 128)
        cores=2,  # cloud; jax
        alus=2,
        fast_capacity_bytes=128 * MIB,  # jax: 134 MB a chip
        reserved_bytes=0,  # assumed, as on v4i
        slow_capacity_bytes=32 * GIB,  # cloud
        slow_bandwidth_bytes_per_s=1.2e12,  # cloud; 1.23e12 in jax
        bf16_flops_per_s=275e12,  # cloud; jax
        int8_flops_per_s=275e12,  # cloud
    )


@functools.cache
def tpu_v5e() -> Accelerator:
    """TPU v5e; plans into 112 MiB of VMEM."""
    return _tpu(
        "tpu_v5e",
        clock_hz=1.5e9,  # xla; peak / (4 MXUs of 128 x 128)
        cores=1,  # cloud; jax
        alus=4,
        fast_capacity_bytes=128 * MIB,  # jax
        reserved_bytes=_VMEM_RESERVED_BYTES,
        slow_capacity_bytes=16 * GIB,  # cloud
        slow_bandwidth_bytes_per_s=819e9,  # cloud; 820e9 in jax
        bf16_flops_per_s=197e12,  # cloud; jax
        int8_flops_per_s=394e12,  # jax; 393e12 in cloud
    )


@functools.cache
def tpu_v5p() -> Accelerator:
    """TPU v5p, both TensorCores as one device; plans into 48 MiB of VMEM."""
    return _tpu(
        "tpu_v5p",
        clock_hz=1.75e9,  # peak / (2 x 4 MXUs of 128 x 128), cloud
        cores=2,  # jax
        alus=4,
        fast_capacity_bytes=64 * MIB,  # jax, of a core; assumed alike in both
        reserved_bytes=_VMEM_RESERVED_BYTES,
        slow_capacity_bytes=95 * GIB,  # cloud
        slow_bandwidth_bytes_per_s=2765e9,  # cloud; 2460e9 in jax
        bf16_flops_per_s=459e12,  # cloud; jax
        int8_flops_per_s=918e12,  # jax
    )


@functools.cache
def tpu_v6e() -> Accelerator:
    """TPU v6e (Trillium); plans into 112 MiB of VMEM."""
    return _tpu(
        "tpu_v6e",
        clock_hz=1.75e9,  # assumed: agrees with xla's cycles of memory-bound programs
        cores=1,  # cloud; jax
        alus=4,
        fast_capacity_bytes=128 * MIB,  # jax
        reserved_bytes=_VMEM_RESERVED_BYTES,
        slow_capacity_bytes=32 * GIB,  # cloud
        slow_bandwidth_bytes_per_s=1638e9,  # cloud; 1640e9 in jax
        bf16_flops_per_s=918e12,  # cloud; 920e12 in jax
        int8_flops_per_s=1836e12,  # cloud; 1840e12 in jax
        matrix_size=256,  # cloud
    )


@functools.cache
def tpu7x() -> Accelerator:
    """One TensorCore of a TPU7x (Ironwood) chip; plans into 48 MiB of VMEM."""
    return _tpu(
        "tpu7x",
        clock_hz=1.75e9,  # assumed, v6e's
        cores=1,  # jax: two a chip, a device each
        alus=4,
        fast_capacity_bytes=64 * MIB,  # jax
        reserved_bytes=_VMEM_RESERVED_BYTES,
        slow_capacity_bytes=96 * GIB,  # cloud: 192 GiB a chip
        slow_bandwidth_bytes_per_s=7380e9 / 2,  # cloud; jax 7400e9 a chip
        bf16_flops_per_s=2307e12 / 2,  # cloud
        int8_flops_per_s=2307e12 / 2,  # assumed: no int8 units (jax), so bf16's rate
        f8_flops_per_s=4614e12 / 2,  # cloud
        matrix_size=256,  # assumed, v6e's
    )


@functools.cache
def gpu_h100_host() -> Accelerator:
    """H100 SXM that offloads to its host: fast is its HBM, slow the host's memory."""
    return _gpu_with_host(
        "gpu_h100_host",
        hbm_bytes=80 * 10**9,  # nvidia
        hbm_bandwidth_bytes_per_s=3.35e12,  # nvidia
    )


@functools.cache
def gpu_h200_host() -> Accelerator:
    """H200 SXM that offloads to its host: fast is its HBM, slow the host's memory."""
    return _gpu_with_host(
        "gpu_h200_host",
        hbm_bytes=141 * 10**9,  # nvidia
        hbm_bandwidth_bytes_per_s=4.8e12,  # nvidia
    )


PRESETS: Mapping[str, Callable[[], Accelerator]] = {
    make.__name__: make
    for make in (
        tpu_v4i,
        tpu_v4,
        tpu_v5e,
        tpu_v5p,
        tpu_v6e,
        tpu7x,
        gpu_h100_host,
        gpu_h200_host,
    )
}
"""By name, what builds each preset; `get` calls it."""


def _tpu(
    name: str,
    *,
    clock_hz: float,
    cores: int,
    alus: int,
    fast_capacity_bytes: int,
    reserved_bytes: int,
    slow_capacity_bytes: int,
    slow_bandwidth_bytes_per_s: float,
    bf16_flops_per_s: float,
    int8_flops_per_s: float,
    f8_flops_per_s: float | None = None,
    matrix_size: int = 128,  # jax: the MXU of every generation up to v5
) -> Accelerator:
    peaks = {
        "bf16": bf16_flops_per_s,
        # XLA's default precision multiplies f32 in one bf16 pass.
        "f32": bf16_flops_per_s,
        "s8": int8_flops_per_s,
    }
    if f8_flops_per_s is not None:
        peaks["f8"] = f8_flops_per_s
    return Accelerator(
        name=name,
        fast=Memory(
            capacity_bytes=fast_capacity_bytes,
            bandwidth_bytes_per_s=_FAST_BYTES_PER_CYCLE * clock_hz * cores,
            alignment_bytes=_ALIGNMENT_BYTES,
            reserved_bytes=reserved_bytes,
        ),
        slow=Memory(
            capacity_bytes=slow_capacity_bytes,
            bandwidth_bytes_per_s=slow_bandwidth_bytes_per_s,
            alignment_bytes=_ALIGNMENT_BYTES,
        ),
        dma=Dma(bandwidth_share=_DMA_BANDWIDTH_SHARE),
        peak_flops_per_s=peaks,
        vector_flops_per_s=_VECTOR_LANES * alus * cores * clock_hz,
        transcendentals_per_s=_VECTOR_LANES * cores * clock_hz,
        clock_hz=clock_hz,
        slow_read_share=_SLOW_READ_SHARE,
        efficiency=_EFFICIENCY,
        tile_rows=_TILE_ROWS,
        tile_lanes=_TILE_LANES,
        matrix_size=matrix_size,
    )


def _gpu_with_host(
    name: str, *, hbm_bytes: int, hbm_bandwidth_bytes_per_s: float
) -> Accelerator:
    """A Hopper GPU; the two differ in their HBM only (nvidia)."""
    # PCI Express 5.0 x16 carries 64e9 bytes/s each way (nvidia: 128 GB/s in both);
    # copies of pinned memory reach 55.6e9 of them (sample output of NVIDIA's
    # nvbandwidth).
    link_share = 0.87
    boost_clock_hz = 1.98e9  # nvidia: 66.9e12 / (132 SMs x 128 lanes x 2)
    return Accelerator(
        name=name,
        fast=Memory(
            capacity_bytes=hbm_bytes,
            bandwidth_bytes_per_s=hbm_bandwidth_bytes_per_s,
            alignment_bytes=256,  # cuda: of every allocation
            reserved_bytes=2 * GIB,  # assumed: context, libraries' workspaces
        ),
        slow=Memory(
            capacity_bytes=256 * GIB,  # nvidia: DGX H100 has 2 TB for 8 GPUs
            bandwidth_bytes_per_s=64e9,
            alignment_bytes=256,
        ),
        dma=Dma(
            bandwidth_share=link_share,
            latency_s=10e-6,  # assumed: launch and completion of one copy
            full_duplex=True,
        ),
        peak_flops_per_s={
            "bf16": 989.4e12,  # nvidia
            "f16": 989.4e12,  # nvidia
            "f32": 494.7e12,  # nvidia, TF32: what jax.lax.Precision.DEFAULT takes
            "f64": 66.9e12,  # nvidia: f64 tensor cores
            "s8": 1978.9e12,  # nvidia
            "f8": 1978.9e12,  # nvidia
        },
        vector_flops_per_s=66.9e12,  # nvidia: f32 units
        transcendentals_per_s=16 * 132 * boost_clock_hz,  # cuda: 16 a cycle on each SM
        direct_slow_access=False,
        # An access left on the host is a transfer that the op waits for.
        slow_read_share=link_share,
    )
