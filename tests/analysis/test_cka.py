import numpy as np
import pytest
import torch

from promptvit.analysis.cka import cka_matrix, is_constant, linear_cka
from promptvit.errors import DataError


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def literal_unbiased_hsic(k, ell):
    """Song et al. (2012), equation 5, of two Gram matrices."""
    n = len(k)
    k, ell, one = k - np.diag(np.diag(k)), ell - np.diag(np.diag(ell)), np.ones(n)
    whole = (one @ k @ one) * (one @ ell @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ ell) + whole - 2 / (n - 2) * (one @ k @ ell @ one)) / (n * (n - 3))


def literal_biased_hsic(k, ell):
    """tr(KHLH) / (n-1)²."""
    n = len(k)
    h = np.eye(n) - 1 / n
    return np.trace(k @ h @ ell @ h) / (n - 1) ** 2


@pytest.mark.parametrize(("hsic", "biased"), [(literal_unbiased_hsic, False), (literal_biased_hsic, True)])
@pytest.mark.parametrize("n", [4, 5, 30])
def test_it_is_the_definition(n, hsic, biased):
    x = draw(n, 6) + 3
    y = x[:, :4] + 0.7 * draw(n, 4, seed=1)
    k, ell = x @ x.T, y @ y.T
    expected = hsic(k, ell) / np.sqrt(hsic(k, k) * hsic(ell, ell))
    assert linear_cka(x, y, biased=biased) == pytest.approx(expected, abs=1e-10)
    assert linear_cka(y, x, biased=biased) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("biased", [False, True])
def test_rotation_scale_and_shift_change_nothing(biased):
    x = draw(40, 12)
    q, _ = np.linalg.qr(draw(12, 12, seed=1))
    assert linear_cka(x, x, biased=biased) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, 3 * x @ q + draw(12, seed=2), biased=biased) == pytest.approx(1, abs=1e-12)
    other = draw(40, 5, seed=3) + x[:, :5]
    assert linear_cka(x @ q - 100, other / 7, biased=biased) == pytest.approx(linear_cka(x, other, biased=biased))


def test_features_that_have_nothing_in_common_are_near_0_unless_biased():
    x, y = draw(100, 768), draw(100, 768, seed=1)
    assert abs(linear_cka(x, y)) < 0.05
    assert linear_cka(x, y, biased=True) == pytest.approx(0.88, abs=0.01)


def test_tensors_of_any_type_are_computed_in_64_bits():
    x, y = draw(20, 8), draw(20, 6, seed=1)
    single = linear_cka(torch.from_numpy(x).float().requires_grad_(), torch.from_numpy(y).float())
    assert single == linear_cka(x.astype(np.float32), y.astype(np.float32))
    assert single == pytest.approx(linear_cka(x, y), abs=1e-6)


def test_a_matrix_has_each_with_each():
    xs, ys = [draw(9, 3), draw(9, 5, seed=1)], [draw(9, 4, seed=2), draw(9, 3), draw(9, 2, seed=3)]
    assert cka_matrix(xs, ys) == [[linear_cka(x, y) for y in ys] for x in xs]


def test_what_tells_images_apart_by_nothing_has_no_value():
    x, same = draw(6, 3), np.full((6, 3), 1 / 3)
    rounded = same.astype(np.float32) * (1 + 1e-7 * draw(6, 3, seed=1).astype(np.float32))
    for each in (same, np.zeros((6, 3)), rounded):
        assert is_constant(each)
        assert linear_cka(x, each) is linear_cka(each, x, biased=True) is None
    assert not is_constant(x + 1000)
    simplex = np.eye(6)  # every two are equally far from one another
    assert linear_cka(x, simplex) is None
    assert linear_cka(x, simplex, biased=True) is not None


def test_what_cannot_be_compared_is_refused():
    x = draw(8, 3)
    with pytest.raises(DataError, match="features of 8 and of 7 images; expected of the same images"):
        linear_cka(x, x[:7])
    for count in (1, 3):
        with pytest.raises(DataError, match=f"{count} images; expected at least 4"):
            linear_cka(x[:count], x[:count])
    x[2, 1] = np.inf
    with pytest.raises(DataError, match="features of 1 of 8 images are not finite"):
        linear_cka(x, x)
