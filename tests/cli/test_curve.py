"""The plot of a search for a learning rate."""

from cli import curve


def test_the_curve_is_drawn_with_the_chosen_rate_under_its_column() -> None:
    lines = curve.text([[1e-4, 2.0], [1e-3, 1.0], [1e-2, 3.0]], 1e-3)
    assert lines == [
        "       3 │    ██",
        "         │    ██",
        "         │▅▅  ██",
        "         │██  ██",
        "       1 │██▁▁██",
        "         └──────",
        "            ^ 0.001",
        "          0.00010.01",
    ]


def test_a_flat_curve_is_drawn_too() -> None:
    assert "▁▁▁▁" in "\n".join(curve.text([[1e-4, 2.0], [1e-3, 2.0]], 3e-4))
