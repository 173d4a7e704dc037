import dataclasses
import json
import math
import pickle
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from hwmodel import presets
from hwmodel.accelerator import (
    Accelerator,
    Dma,
    Efficiency,
    Memory,
    load_accelerator,
)

MIB = 2**20
NOT_RATES = [0, -1.0, math.nan, math.inf, "fast", None, True, 1j]


def toy(**changes) -> Accelerator:
    """A machine of round numbers: 1 KiB fast at 1000 B/s, slow at 100 B/s."""
    fields = {
        "name": "toy",
        "fast": Memory(
            capacity_bytes=1024, bandwidth_bytes_per_s=1000.0, alignment_bytes=64
        ),
        "slow": Memory(capacity_bytes=2**20, bandwidth_bytes_per_s=100.0),
        "peak_flops_per_s": {"bf16": 8.0, "f32": 2.0},
        "vector_flops_per_s": 4.0,
        "transcendentals_per_s": 1.0,
    }
    return Accelerator(**(fields | changes))


def test_usable_bytes_are_whole_aligned_blocks_less_the_reserve():
    memory = Memory(
        capacity_bytes=1000,
        bandwidth_bytes_per_s=1.0,
        alignment_bytes=64,
        reserved_bytes=100,
    )
    assert memory.usable_bytes == 14 * 64  # 900 bytes are left, 4 of them over


@pytest.mark.parametrize("rate", NOT_RATES)
@pytest.mark.parametrize(
    "field", ["vector_flops_per_s", "transcendentals_per_s", "slow_read_share"]
)
def test_rates_of_an_accelerator_are_positive_and_finite(field, rate):
    with pytest.raises(ValueError, match=rf"{field} is .*; it must be a finite number"):
        toy(**{field: rate})


@pytest.mark.parametrize("rate", NOT_RATES)
def test_bandwidth_is_positive_and_finite(rate):
    with pytest.raises(ValueError, match="bandwidth_bytes_per_s is"):
        Memory(capacity_bytes=1024, bandwidth_bytes_per_s=rate)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"capacity_bytes": 0}, "capacity_bytes is 0; .* at least 1"),
        ({"capacity_bytes": 1e6}, "capacity_bytes is 1000000.0; .* whole number"),
        ({"capacity_bytes": True}, "capacity_bytes is True"),
        ({"alignment_bytes": 96}, "alignment_bytes is 96; .* power of two"),
        ({"alignment_bytes": 0}, "alignment_bytes is 0"),
        ({"reserved_bytes": -1}, "reserved_bytes is -1"),
        ({"reserved_bytes": 4096}, "reserved_bytes is 4096 .* Reserve less"),
        ({"reserved_bytes": 3585}, "less than one aligned block of 512"),
    ],
)
def test_memory_refuses(fields, message):
    fields = {"capacity_bytes": 4096, "bandwidth_bytes_per_s": 1.0} | fields
    with pytest.raises(ValueError, match=message):
        Memory(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bandwidth_share": 1.5}, "bandwidth_share is 1.5; .* at most 1"),
        ({"bandwidth_share": 0.0}, "bandwidth_share is 0.0"),
        ({"latency_s": -1e-6}, "latency_s is -1e-06; .* at least 0"),
        ({"latency_s": math.nan}, "latency_s is nan"),
        ({"max_in_flight": 0}, "max_in_flight is 0"),
        ({"full_duplex": 1}, "full_duplex is 1; it must be a bool"),
    ],
)
def test_dma_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        Dma(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"matmul": 1.1}, "matmul is 1.1; .* at most 1"),
        ({"fast": 0.0}, "fast is 0.0"),
        ({"slow": 2.0}, "slow is 2.0; .* at most 1"),
        ({"overlap": 0}, "overlap is 0; it must be a bool"),
    ],
)
def test_efficiency_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        Efficiency(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "name is ''"),
        ({"fast": {"capacity_bytes": 1}}, r"fast is .* must be a Memory\(...\)"),
        ({"dma": None}, r"dma is None; it must be a Dma\(...\)"),
        ({"peak_flops_per_s": {}}, "peak_flops_per_s is {}"),
        ({"peak_flops_per_s": 1e12}, "peak_flops_per_s is 1000000000000.0"),
        ({"peak_flops_per_s": {"bf16": 0}}, r"peak_flops_per_s\['bf16'\] is 0"),
        ({"peak_flops_per_s": {16: 1.0}}, r"peak_flops_per_s\[16\]: .* name"),
        ({"clock_hz": 0.0}, "clock_hz is 0.0"),
        ({"direct_slow_access": "no"}, "direct_slow_access is 'no'"),
        ({"slow_read_share": 1.01}, "slow_read_share is 1.01"),
        ({"efficiency": 0.9}, r"efficiency is 0.9; it must be a Efficiency\(...\)"),
        ({"tile_rows": 0}, "tile_rows is 0"),
        ({"matrix_size": 1.5}, "matrix_size is 1.5"),
    ],
)
def test_accelerator_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        toy(**fields)


@pytest.mark.parametrize(
    ("dtype", "flops_per_s"),
    [
        ("bf16", 8.0),
        ("f16", 8.0),
        ("f32", 2.0),
        ("f64", 2.0),
        ("c128", 2.0),
        ("s8", 8.0),
        ("s4", 8.0),
        ("u8", 8.0),
        ("pred", 8.0),
        ("f8e4m3fn", 8.0),
        ("f4e2m1fn", 8.0),
        ("s32", 2.0),
        ("", 2.0),  # unknown: the slowest
        ("token", 2.0),
    ],
)
def test_peak_falls_back_to_the_nearest_listed_dtype(dtype, flops_per_s):
    assert toy().peak(dtype) == flops_per_s


def test_peak_prefers_what_is_listed():
    machine = toy(peak_flops_per_s={"f8": 3.0, "f8e5m2": 4.0, "f16": 5.0})
    assert machine.peak("f8e5m2") == 4.0
    assert machine.peak("f8e4m3fn") == 3.0
    assert machine.peak("bf16") == 5.0
    assert machine.peak("s64") == 5.0  # s64 -> f32 -> bf16 -> f16
    assert toy(peak_flops_per_s={"s8": 9.0, "s4": 7.0}).peak("f32") == 7.0


def test_derived_rates():
    machine = toy(dma=Dma(bandwidth_share=0.5), slow_read_share=0.25)
    assert machine.dma_bytes_per_s == 50.0
    assert machine.direct_bytes_per_s == 25.0


def test_replace_reaches_into_the_parts():
    old = toy()
    new = old.replace(
        fast_capacity_bytes=2048,
        fast_reserved_bytes=1024,
        slow_bandwidth_bytes_per_s=7.0,
        dma_full_duplex=True,
        slow_read_share=0.5,
        efficiency_matmul=0.25,
    )
    assert new.fast == dataclasses.replace(
        old.fast, capacity_bytes=2048, reserved_bytes=1024
    )
    assert new.slow == dataclasses.replace(old.slow, bandwidth_bytes_per_s=7.0)
    assert new.dma.full_duplex
    assert new.slow_read_share == 0.5
    assert new.efficiency == Efficiency(matmul=0.25)
    assert old == toy()


def test_replace_names_the_nearest_field():
    with pytest.raises(ValueError, match=r"'fast_capacity'. Did you mean 'fast_capac"):
        toy().replace(fast_capacity=1)
    with pytest.raises(ValueError, match="reserved_bytes is 9999"):
        toy().replace(fast_reserved_bytes=9999)


def test_equal_machines_hash_alike_and_share_a_cache_key():
    assert toy() == toy()
    assert hash(toy()) == hash(toy())
    assert toy().cache_key == toy().cache_key
    changed = toy(peak_flops_per_s={"bf16": 8.0, "f32": 2.1})
    assert changed != toy()
    assert changed.cache_key != toy().cache_key
    assert pickle.loads(pickle.dumps(toy())) == toy()


def test_peaks_do_not_follow_the_callers_dict():
    peaks = {"bf16": 8.0}
    machine = toy(peak_flops_per_s=peaks)
    peaks["bf16"] = 1.0
    assert machine.peak("bf16") == 8.0


@pytest.mark.parametrize("name", presets.PRESETS)
def test_dict_and_json_round_trip(name):
    machine = presets.get(name)
    assert Accelerator.from_dict(json.loads(json.dumps(machine.to_dict()))) == machine


rates = st.floats(1e-3, 1e18)
memories = st.builds(
    lambda blocks, reserved, rate, log: Memory(
        capacity_bytes=(blocks + reserved) << log,
        bandwidth_bytes_per_s=rate,
        alignment_bytes=1 << log,
        reserved_bytes=reserved << log,
    ),
    st.integers(1, 2**40),
    st.integers(0, 2**20),
    rates,
    st.integers(0, 12),
)
accelerators = st.builds(
    Accelerator,
    name=st.text(min_size=1),
    fast=memories,
    slow=memories,
    dma=st.builds(
        Dma,
        bandwidth_share=st.floats(1e-3, 1.0),
        latency_s=st.floats(0, 1),
        max_in_flight=st.none() | st.integers(1, 100),
        full_duplex=st.booleans(),
    ),
    peak_flops_per_s=st.dictionaries(st.text(min_size=1), rates, min_size=1),
    vector_flops_per_s=rates,
    transcendentals_per_s=rates,
    clock_hz=st.none() | rates,
    direct_slow_access=st.booleans(),
    slow_read_share=st.floats(1e-3, 1.0),
    efficiency=st.builds(
        Efficiency,
        matmul=st.floats(1e-3, 1.0),
        fast=st.floats(1e-3, 1.0),
        slow=st.none() | st.floats(1e-3, 1.0),
        overlap=st.booleans(),
    ),
    tile_rows=st.integers(1, 64),
    tile_lanes=st.integers(1, 1024),
    matrix_size=st.integers(1, 1024),
)


@hypothesis.given(accelerators)
@hypothesis.settings(max_examples=50, deadline=None)
def test_any_accelerator_survives_json(machine):
    again = Accelerator.from_dict(json.loads(json.dumps(machine.to_dict())))
    assert again == machine
    assert again.cache_key == machine.cache_key


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


@hypothesis.given(
    st.sampled_from([f.name for f in dataclasses.fields(Accelerator)]), json_values
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_a_field_of_any_value_is_taken_or_named(field, value):
    fields = toy().to_dict() | {field: value}
    try:
        machine = Accelerator.from_dict(fields, where="m.json")
    except ValueError as error:
        refusal = str(error)
    else:
        assert Accelerator.from_dict(machine.to_dict()) == machine
        return
    assert refusal.startswith("m.json: ")
    assert field in refusal


TOML = """
name = "mine"
vector_flops_per_s = 4e12
transcendentals_per_s = 1e12
peak_flops_per_s = { bf16 = 2e14 }

[fast]
capacity_bytes = 134_217_728
bandwidth_bytes_per_s = 2e12

[slow]
capacity_bytes = 17_179_869_184
bandwidth_bytes_per_s = 8e11

[dma]
bandwidth_share = 0.8
"""


def test_a_toml_file_may_leave_defaults_out(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    machine = load_accelerator(path)
    assert machine.fast.capacity_bytes == 128 * MIB
    assert machine.fast.alignment_bytes == 512
    assert machine.dma == Dma(bandwidth_share=0.8)
    assert machine.clock_hz is None
    assert presets.get(path) == machine
    assert presets.get(str(path)) == machine


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[fast]", "[fats]", r"mine.toml: unknown field 'fats'. Did you mean 'fast'"),
        ("134_217_728", "-4", r"mine.toml: fast: capacity_bytes is -4"),
        (
            "bandwidth_share",
            "bandwith_share",
            r"mine.toml: dma: unknown field 'bandwith_share'. Did you mean 'bandwidth_",
        ),
        ("2e14", "nan", r"mine.toml: peak_flops_per_s\['bf16'\] is nan"),
        ("{ bf16 = 2e14 }", "2e14", "mine.toml: peak_flops_per_s is"),
        ('name = "mine"', "", "mine.toml: Accelerator needs name; found"),
        ("capacity_bytes = 17_179_869_184", "", "slow: Memory needs capacity_bytes"),
        ('"mine"', '"mine', "mine.toml: not valid TOML"),
        ("[dma]\nbandwidth_share = 0.8", "", None),
    ],
)
def test_a_wrong_file_is_named_with_the_field(tmp_path, old, new, message):
    assert old in TOML
    path = tmp_path / "mine.toml"
    path.write_text(TOML.replace(old, new, 1))
    if message is None:
        assert load_accelerator(path).dma == Dma()
    else:
        with pytest.raises(ValueError, match=message):
            load_accelerator(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none.json: cannot be read \(No such file"):
        load_accelerator(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"must end in .json or .toml"):
        load_accelerator(tmp_path / "machine.yaml")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="found list, expected the fields"):
        load_accelerator(tmp_path / "list.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad.json: not valid JSON"):
        load_accelerator(tmp_path / "bad.json")


def test_get_names_the_nearest_preset():
    with pytest.raises(ValueError, match=r"'tpuv5e'. Did you mean 'tpu_v5e'\? Known:"):
        presets.get("tpuv5e")
    with pytest.raises(ValueError, match="accelerator is 5; expected a preset's name"):
        presets.get(5)
    machine = toy()
    assert presets.get(machine) is machine


@pytest.mark.parametrize(
    ("name", "usable_mib", "copies_gb_per_s"),
    [
        ("tpu_v4i", 128, 552.6),
        ("tpu_v4", 128, 1080.0),
        ("tpu_v5e", 112, 737.1),
        ("tpu_v5p", 48, 2488.5),
        ("tpu_v6e", 112, 1474.2),
        ("tpu7x", 48, 3321.0),
    ],
)
def test_tpu_presets_plan_into_what_the_compiler_does(
    name, usable_mib, copies_gb_per_s
):
    machine = presets.get(name)
    assert machine.name == name
    assert machine.fast.usable_bytes == usable_mib * MIB
    assert machine.fast.alignment_bytes == 512
    assert machine.dma_bytes_per_s == pytest.approx(copies_gb_per_s * 1e9)
    assert not machine.dma.full_duplex
    assert machine.direct_slow_access


def test_v5e_per_cycle():
    machine = presets.get("tpu_v5e")
    assert machine.dma_bytes_per_s / machine.clock_hz == pytest.approx(491.4)
    assert machine.direct_bytes_per_s / machine.clock_hz == pytest.approx(400.0)
    assert machine.peak("bf16") / machine.clock_hz == pytest.approx(131333, rel=1e-5)
    assert machine.fast.bandwidth_bytes_per_s / machine.clock_hz == 1000.0


@pytest.mark.parametrize("name", ["gpu_h100_host", "gpu_h200_host"])
def test_gpu_presets_offload_over_a_full_duplex_link(name):
    machine = presets.get(name)
    assert machine.dma.full_duplex
    assert not machine.direct_slow_access
    assert machine.dma_bytes_per_s == pytest.approx(55.7e9, rel=1e-3)
    assert machine.fast.usable_bytes > 70e9
    assert machine.peak("f8e4m3fn") == pytest.approx(1979e12, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "chip", "cores"),
    [
        ("tpu_v4i", "TPU_V4I", 1),
        ("tpu_v4", "TPU_V4", 2),
        ("tpu_v5e", "TPU_V5E", 1),
        ("tpu_v5p", "TPU_V5P", 2),
        ("tpu_v6e", "TPU_V6E", 1),
        ("tpu7x", "TPU_7X", 1),
    ],
)
def test_tpu_presets_agree_with_jax(name, chip, cores):
    """JAX lists one TensorCore, rounded, and a v5p HBM that is 11 % slower."""
    tpu = pytest.importorskip("jax.experimental.pallas.tpu")
    if not hasattr(tpu, "get_tpu_info_for_chip"):
        pytest.skip("this jax does not publish chip figures")
    info = tpu.get_tpu_info_for_chip(getattr(tpu.ChipVersion, chip), cores)
    machine = presets.get(name)
    cmem = info.cmem_capacity_bytes * cores
    assert machine.fast.capacity_bytes == pytest.approx(
        cmem or info.vmem_capacity_bytes, rel=0.002
    )
    assert machine.slow.capacity_bytes == pytest.approx(
        info.hbm_capacity_bytes * cores, rel=0.01
    )
    assert machine.slow.bandwidth_bytes_per_s == pytest.approx(
        info.mem_bw_bytes_per_second * cores, rel=0.13 if name == "tpu_v5p" else 0.03
    )
    for dtype, per_core in (
        ("bf16", info.bf16_ops_per_second),
        ("s8", info.int8_ops_per_second),
        ("f8", info.fp8_ops_per_second if name == "tpu7x" else 0),
    ):
        if per_core:  # 0: JAX does not say
            assert machine.peak(dtype) == pytest.approx(per_core * cores, rel=0.005)


def test_machines_are_read_without_jax():
    code = "import sys, hwmodel; hwmodel.get('tpu_v5e'); print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_numpy_integers_are_whole_numbers():
    memory = Memory(capacity_bytes=np.int64(1024), bandwidth_bytes_per_s=np.float32(2))
    assert type(memory.capacity_bytes) is int
    assert type(memory.bandwidth_bytes_per_s) is float
