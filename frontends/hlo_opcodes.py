"""The opcodes of HLO, by what they mean for memory and arithmetic.

Source: the operation semantics of OpenXLA, https://openxla.org/xla/operation_semantics,
and the opcode list of xla/hlo/ir/hlo_opcode.h.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# One vector operation per element of the result.
ELEMENTWISE = _words(
    """abs add and ceil clamp clz compare complex convert count-leading-zeros divide
    floor imag is-finite map maximum minimum multiply negate not or popcnt
    reduce-precision remainder real round-nearest-afz round-nearest-even select
    shift-left shift-right-arithmetic shift-right-logical sign stochastic-convert
    subtract xor"""
)
# One transcendental function per element of the result.
TRANSCENDENTAL = _words(
    """acos acosh asin asinh atan2 atanh cbrt cosh cosine erf exponential
    exponential-minus-one log log-plus-one logistic power rsqrt sine sinh sqrt tan
    tanh"""
)
# One vector operation per element of the operand of this number.
REDUCING = {
    "reduce": 0,
    "reduce-window": 0,
    "scatter": 2,
    "select-and-scatter": 0,
    "sort": 0,
    "topk": 0,
}
# The result is the operand seen in another way: the same place in memory. A reshape
# that is still there after scheduling moves data; free ones have become bitcasts.
VIEWS = frozenset(("add-dependency", "bitcast", "domain", "opt-barrier"))
# Runs computations whose instructions belong to the schedule.
CALLING = frozenset(("while", "conditional", "call"))
_MOVING = _words(
    """after-all all-gather all-reduce all-to-all batch-norm-grad batch-norm-inference
    batch-norm-training bitcast-convert broadcast cholesky collective-broadcast
    collective-permute concatenate constant convolution copy custom-call dot
    dynamic-reshape dynamic-slice dynamic-update-slice fft fusion gather
    get-dimension-size get-tuple-element infeed iota outfeed pad parameter partition-id
    ragged-all-to-all ragged-dot recv reduce-scatter replica-id reshape reverse rng
    rng-bit-generator rng-get-and-update-state scaled-dot send set-dimension-size slice
    transpose triangular-solve tuple"""
)
KNOWN = ELEMENTWISE | TRANSCENDENTAL | VIEWS | CALLING | _MOVING | frozenset(REDUCING)


def is_known(opcode: str) -> bool:
    """Whether the opcode, without an asynchronous ending, is one of XLA's."""
    for ending in ("-start", "-update", "-done"):
        if opcode.endswith(ending):
            return opcode == f"async{ending}" or opcode.removesuffix(ending) in KNOWN
    return opcode in KNOWN
