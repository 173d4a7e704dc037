"""Fast matrix multiplication: exact coefficients, their files, the product."""

import functools
import itertools
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import block_matmul
import factorization_files
import matmul_factorizations

NAMES = sorted(matmul_factorizations.BUILT_IN)


def schoolbook(n, m, p):
    """`<n, m, p; n * m * p>`: one product for each pair of blocks that meet."""
    rank = n * m * p
    u, v, w = np.zeros((n, m, rank)), np.zeros((m, p, rank)), np.zeros((n, p, rank))
    for r, (i, j, k) in enumerate(itertools.product(range(n), range(m), range(p))):
        u[i, j, r] = v[j, k, r] = w[i, k, r] = 1
    return matmul_factorizations.Factorization(name="schoolbook", u=u, v=v, w=w)


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def save_alphatensor(path, *factorizations):
    """Writes AlphaTensor's layout: flat factors of the transposed product."""
    arrays = {}
    for f in factorizations:
        factors = [f.u, f.v, f.w.transpose(1, 0, 2)]
        stacked = np.empty(3, object)
        stacked[:] = [x.reshape(-1, f.rank).astype(np.int32) for x in factors]
        if len({x.shape for x in stacked}) == 1:  # np.save stacks equal shapes
            stacked = np.stack(list(stacked))
        arrays[",".join(map(str, f.shape))] = stacked
    np.savez_compressed(path, **arrays)


@pytest.mark.parametrize(
    ("name", "shape", "rank"),
    [
        ("strassen", (2, 2, 2), 7),
        ("strassen2", (4, 4, 4), 49),
        ("laderman", (3, 3, 3), 23),
    ],
)
def test_built_in_multiplies_integer_matrices_exactly(name, shape, rank):
    f = factorization_files.get(name)
    n, m, p = shape
    assert (f.shape, f.rank) == (shape, rank)
    # Independently of the check in Factorization: on every pair of unit matrices, which
    # span all matrices, in integers.
    u, v, w = (x.astype(int) for x in (f.u, f.v, f.w))
    for a_index, b_index in itertools.product(np.ndindex(n, m), np.ndindex(m, p)):
        a, b = np.zeros((n, m), int), np.zeros((m, p), int)
        a[a_index] = b[b_index] = 1
        products = np.einsum("ijr,ij->r", u, a) * np.einsum("jkr,jk->r", v, b)
        np.testing.assert_array_equal(w @ products, a @ b)


@pytest.mark.parametrize("factor", ["u", "v", "w"])
@pytest.mark.parametrize("name", NAMES)
def test_any_changed_coefficient_is_found(name, factor):
    f = factorization_files.get(name)
    factors = {"u": f.u, "v": f.v, "w": f.w}
    index = tuple(np.argwhere(factors[factor])[-1])
    factors[factor] = changed(factors[factor], index, 2)
    with pytest.raises(
        matmul_factorizations.NotAFactorization, match=r"does not multiply matrices"
    ):
        matmul_factorizations.Factorization(name=name, **factors)


def test_message_names_the_wrong_entry():
    f = factorization_files.get("strassen")
    # C[0, 0] is product 0 + 3 - 4 + 6, and product 3 is A[1,1] (B[1,0] - B[0,0]). Taken
    # twice, the first pair of blocks to come out wrong is A[1,1] B[0,0]: 0 becomes -1.
    with pytest.raises(
        ValueError, match=r"A\[1,1\] B\[0,0\] is in C\[0,0\] -1 times, not 0; 2 of 64"
    ):
        matmul_factorizations.Factorization(
            name="wrong", u=f.u, v=f.v, w=changed(f.w, (0, 0, 3), 2)
        )


def test_modulo_two_is_told_apart():
    f = factorization_files.get("strassen")
    with pytest.raises(ValueError, match="It holds modulo 2"):
        matmul_factorizations.Factorization(
            name="f2", u=abs(f.u), v=abs(f.v), w=abs(f.w)
        )


def test_coefficients_that_are_not_exact_are_refused():
    f = schoolbook(1, 1, 2)
    with pytest.raises(ValueError, match=r"thirds: u holds the coefficient 0\.333"):
        matmul_factorizations.Factorization(name="thirds", u=f.u / 3, v=3 * f.v, w=f.w)
    halves = matmul_factorizations.Factorization(
        name="halves", u=f.u / 2, v=2 * f.v, w=f.w
    )
    assert halves.rank == 2


def test_shapes_that_do_not_fit_are_refused():
    f, g = schoolbook(1, 2, 3), schoolbook(2, 2, 3)
    with pytest.raises(ValueError, match=r"u \(1, 2, 6\), v \(2, 3, 12\) and w"):
        matmul_factorizations.Factorization(name="mixed", u=f.u, v=g.v, w=f.w)


@pytest.mark.parametrize("blocks", [(2, 2, 2), (2, 3, 4), (1, 3, 2)])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_npz_of_three_arrays(tmp_path, blocks, flat, transposed):
    f = schoolbook(*blocks)
    factors = [f.u, f.v, f.w.transpose(1, 0, 2) if transposed else f.w]
    if flat:
        factors = [x.reshape(-1, f.rank) for x in factors]
    path = str(tmp_path / "uvw.npz")
    np.savez(path, **dict(zip("uvw", factors, strict=True)))
    loaded = factorization_files.get(path)
    assert loaded.shape == blocks
    for factor in ("u", "v", "w"):
        np.testing.assert_array_equal(getattr(loaded, factor), getattr(f, factor))


def test_npz_of_alphatensor(tmp_path):
    strassen, tall = factorization_files.get("strassen"), schoolbook(3, 2, 4)
    path = str(tmp_path / "factorizations_r.npz")
    save_alphatensor(path, strassen, tall)
    for key, f in (("2,2,2", strassen), ("3,2,4", tall)):
        loaded = factorization_files.get(f"{path}:{key}")
        assert (loaded.shape, loaded.rank) == (f.shape, f.rank)
        np.testing.assert_array_equal(loaded.w, f.w)
    with pytest.raises(ValueError, match=r"holds '2,2,2', '3,2,4', and no key was"):
        factorization_files.get(path)
    with pytest.raises(ValueError, match=r"there is no key '5,5,5'"):
        factorization_files.get(f"{path}:5,5,5")


def test_key_may_be_left_out_of_a_file_with_one(tmp_path):
    path = str(tmp_path / "one.npz")
    save_alphatensor(path, schoolbook(2, 1, 3))
    assert factorization_files.get(path).shape == (2, 1, 3)


def test_wrong_factorization_in_a_file_is_named(tmp_path):
    f = factorization_files.get("laderman")
    path = str(tmp_path / "wrong.npz")
    np.savez(path, u=f.u, v=changed(f.v, (2, 2, 22), -1), w=f.w)
    with pytest.raises(ValueError, match=r"wrong\.npz does not multiply matrices: A\["):
        factorization_files.get(path)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_a_file_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stacked = np.empty(3, object)
    stacked[0] = Malicious()
    np.savez("evil.npz", **{"2,2,2": stacked})
    with pytest.raises(
        ValueError, match=r"evil\.npz: 2,2,2\.npy holds no numeric array: .*mkdir"
    ):
        factorization_files.get("evil.npz")
    assert not os.path.exists("made-by-a-pickle")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("strasen", r"unknown factorization 'strasen'. Built in: strassen, strassen2"),
        ("missing.npz", r"missing\.npz: cannot be read \(No such file"),
        ("text.npz", r"text\.npz: not an \.npz file"),
        ("cut.npz", r"cut\.npz: not an \.npz file"),
        ("scalar.npz", r"scalar\.npz: u has shape \(\); it must be"),
        ("pair.npz:2,2,2", r"pair\.npz:2,2,2 holds 2 factors"),
        ("odd.npz", r"odd\.npz: factors of 3, 4 and 5 rows belong to no"),
        ("odd2.npz:2,2,2", r"its factors have \[3, 4, 5\] rows; those of <2,2,2> have"),
        ("rank.npz", r"u \(1, 1, 1\), v \(1, 1, 2\) and w .* do not fit together"),
        ("words.npz", r"words\.npz: u is a <U1 array"),
    ],
)
def test_bad_files_and_names(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npz").write_text("u v w")
    np.savez("whole.npz", u=1)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:40])
    np.savez("scalar.npz", u=1, v=1, w=1)
    np.savez("pair.npz", **{"2,2,2": np.ones((2, 4, 7))})
    odd = [np.ones((rows, 7)) for rows in (3, 4, 5)]
    np.savez("odd.npz", u=odd[0], v=odd[1], w=odd[2])
    stacked = np.empty(3, object)
    stacked[:] = odd
    np.savez("odd2.npz", **{"2,2,2": stacked})
    np.savez("rank.npz", u=np.ones((1, 1)), v=np.ones((1, 2)), w=np.ones((1, 1)))
    np.savez("words.npz", u=[["a"]], v=[[1]], w=[[1]])
    with pytest.raises(ValueError, match=message):
        factorization_files.get(name)


def test_an_array_that_numpy_pickled_long_ago_is_read(tmp_path):
    # Protocol 3 and the module's name before NumPy 2, as in files of 2022.
    stacked = np.empty(2, object)
    stacked[:] = [np.arange(2), np.arange(3)]
    old = pickle.dumps(stacked, protocol=3).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in old
    path = tmp_path / "old.pickle"
    path.write_bytes(old)
    with path.open("rb") as f:
        loaded = factorization_files._ArrayUnpickler(f).load()
    np.testing.assert_array_equal(loaded[1], [0, 1, 2])


def relative_error(f, shape, dtype, levels):
    """Largest error of the fast product in `dtype`, over the largest entry."""
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((m, k), (k, n)))
    multiply = functools.partial(block_matmul.multiply, f, levels=levels)
    c = jax.jit(multiply)(a, b)
    assert c.shape == (m, n)
    assert c.dtype == dtype
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    return np.abs(np.asarray(c, np.float64) - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("strassen", (24, 12, 36)),
        ("strassen", (13, 7, 31)),
        ("strassen", (1, 1, 1)),
        ("laderman", (24, 12, 36)),
        ("laderman", (13, 7, 31)),
        ("strassen2", (13, 7, 31)),
    ],
)
def test_product_in_float32(name, shape):
    f = factorization_files.get(name)
    assert relative_error(f, shape, jnp.float32, levels=1) < 1e-5


@pytest.mark.parametrize("name", ["strassen", "laderman"])
def test_product_in_bfloat16(name):
    f = factorization_files.get(name)
    # bfloat16 keeps 8 bits; the sums before and after the products lose a few units.
    error = relative_error(f, (48, 36, 60), jnp.bfloat16, levels=1)
    assert 1e-4 < error < 0.05


def test_two_levels():
    f = factorization_files.get("strassen")
    assert relative_error(f, (30, 22, 17), jnp.float32, levels=2) < 1e-5


def test_rectangular_with_fractions():
    f = schoolbook(2, 3, 1)
    f = matmul_factorizations.Factorization(
        name="scaled", u=-f.u / 2, v=4 * f.v, w=-f.w / 2
    )
    assert relative_error(f, (11, 10, 5), jnp.float32, levels=1) < 1e-5


def count_products(f, levels):
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    multiply = functools.partial(block_matmul.multiply, f, levels=levels)
    text = jax.jit(multiply).lower(x, x).as_text()
    return text.count("stablehlo.dot_general")


@pytest.mark.parametrize(
    ("name", "levels", "products"),
    [
        ("strassen", 1, 7),
        ("strassen", 2, 49),
        ("strassen2", 1, 49),
        ("laderman", 1, 23),
    ],
)
def test_as_many_products_as_promised(name, levels, products):
    assert count_products(factorization_files.get(name), levels) == products


def test_result_blocks_are_summed_when_their_last_product_is_there():
    # In Strassen's order C[1, 0] takes products 1 and 3: it is done before product 4,
    # so that product 1 need not be kept any longer.
    f = factorization_files.get("strassen")
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    jaxpr = jax.make_jaxpr(functools.partial(block_matmul.multiply, f))(x, x)
    names = [
        (eqn.primitive.name, str(eqn.source_info.name_stack)) for eqn in jaxpr.eqns
    ]
    dots = [i for i, (primitive, _) in enumerate(names) if primitive == "dot_general"]
    done = max(i for i, (_, scope) in enumerate(names) if "result10" in scope)
    assert dots[3] < done < dots[4]


@pytest.mark.parametrize(
    ("a", "b", "levels", "message"),
    [
        (((4, 3), "float32"), ((4, 3), "float32"), 1, r"\(4, 3\) and \(4, 3\) are not"),
        (((4,), "float32"), ((4, 3), "float32"), 1, r"are not those of a matrix"),
        (((4, 4), "float32"), ((4, 4), "bfloat16"), 1, r"must be one and the same"),
        (((4, 4), "int32"), ((4, 4), "int32"), 1, r"float type"),
        (((4, 4), "float32"), ((4, 4), "float32"), 0, r"levels is 0"),
    ],
)
def test_arguments_that_do_not_fit(a, b, levels, message):
    f = factorization_files.get("strassen")
    with pytest.raises(ValueError, match=message):
        block_matmul.multiply(
            f, jax.ShapeDtypeStruct(*a), jax.ShapeDtypeStruct(*b), levels=levels
        )
