"""The accuracy rule sees what a norm does not."""

import pytest
import torch

from rdkernels.testing import assert_accurate

EXACT = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PEER = EXACT.float()


def test_the_peer_itself_passes() -> None:
    assert_accurate(PEER, EXACT, PEER)


def test_twice_the_peers_error_passes_and_more_does_not() -> None:
    exact, peer = torch.tensor([1.0, 1.0], dtype=torch.float64), torch.tensor([1.0, 1.01])
    assert_accurate(torch.tensor([1.019, 0.981]), exact, peer)
    with pytest.raises(AssertionError, match=r"y: 1 of 2 elements off, worst at \(0,\): got 1\.02999"):
        assert_accurate(torch.tensor([1.03, 1.0]), exact, peer, "y")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_zeroed_element(dtype: torch.dtype) -> None:
    peer = EXACT.to(dtype)
    got = peer.clone()
    got[1234, 567] = 0
    with pytest.raises(AssertionError, match=r"1 of 16777216 elements off, worst at \(1234, 567\)"):
        assert_accurate(got, EXACT, peer)
    assert (got.double() - EXACT).norm() < 2e-3 * EXACT.norm() + (peer.double() - EXACT).norm()  # a norm is blind to it


@pytest.mark.parametrize(
    ("got", "peer", "passes"),
    [
        ("nan", 1.0, False),
        ("inf", 1.0, False),
        (1.0, "nan", False),
        (1.0, "inf", False),
        ("-inf", "inf", False),
        ("nan", "inf", False),
        ("inf", "nan", False),
        ("nan", "nan", True),
        ("inf", "inf", True),
        ("-inf", "-inf", True),
    ],
)
def test_nan_and_infinities_stand_where_the_peer_has_them(got, peer, passes: bool) -> None:
    exact = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    arguments = torch.tensor([[2.0, float(got)]]), exact, torch.tensor([[2.0, float(peer)]])
    if passes:
        assert_accurate(*arguments)
    else:
        with pytest.raises(AssertionError, match=r"at \(0, 1\) got .*, torch has "):
            assert_accurate(*arguments)


def test_infinity_does_not_widen_the_bound() -> None:
    exact = torch.tensor([1.0, float("inf")], dtype=torch.float64)
    with pytest.raises(AssertionError, match="1 of 2 elements off"):
        assert_accurate(torch.tensor([1.5, float("inf")]), exact, torch.tensor([1.0, float("inf")]))


def test_shapes_and_dtypes_must_agree() -> None:
    with pytest.raises(AssertionError, match=r"y: shape \[2\], exact has \[3\]"):
        assert_accurate(torch.ones(2), torch.ones(3).double(), torch.ones(2), "y")
    with pytest.raises(AssertionError, match=r"shape \[2, 1\], peer has \[2\]"):
        assert_accurate(torch.ones(2, 1), torch.ones(2, 1).double(), torch.ones(2))
    with pytest.raises(AssertionError, match="must be float64"):
        assert_accurate(torch.ones(2), torch.ones(2), torch.ones(2))
    with pytest.raises(AssertionError, match=r"peer torch\.float32"):
        assert_accurate(torch.ones(2).half(), torch.ones(2).double(), torch.ones(2))
    assert_accurate(torch.ones(0, 3), torch.ones(0, 3).double(), torch.ones(0, 3))
