import csv
import struct

import numpy as np
import pytest

from train.artifacts.spectrum import Spectrum, by_module, draw_spectrum, plot_spectrum, total_kept, write_csv


def _spectra():
    values = {"a": np.float32([4, 3, 0, 0]), "b": np.float32([1, 1]), "c": np.zeros(3, np.float32)}
    return by_module(values, [1, 2, 1])


def test_shares_and_ranks():
    a, b, c = _spectra()
    assert a.share([0, 1, 2, 9]).tolist() == [0, 0.64, 1, 1]
    assert (a.share_kept, b.share_kept, c.share_kept) == (0.64, 1, 1)
    assert (a.ranks_needed(), b.ranks_needed(), c.ranks_needed()) == ([1, 2, 2], [1, 2, 2], [1, 1, 1])
    assert total_kept([a, b, c]) == pytest.approx(18 / 27)
    assert total_kept([c]) == 1


def test_the_table_has_a_line_a_module(tmp_path):
    write_csv(tmp_path / "s.csv", _spectra())
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["module"] for row in rows] == ["a", "b", "c"]
    assert list(rows[0].values())[1:] == ["4", "1", "0.640000", "1", "2", "2"]


def test_the_same_spectra_give_the_same_picture(tmp_path):
    for name in ("a.png", "b.png"):
        plot_spectrum(_spectra(), tmp_path / name, "a title")
    picture = (tmp_path / "a.png").read_bytes()
    assert picture == (tmp_path / "b.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (1350, 825)


def test_a_line_a_module_and_their_median():
    (panel,) = draw_spectrum(_spectra(), "a title").axes
    *modules, median = panel.get_lines()
    assert [len(line.get_xdata()) for line in modules] == [4, 2, 3]
    assert median.get_ydata().tolist() == [0.64, 1, 1, 1]
    kept = panel.collections[0].get_offsets().tolist()
    assert kept == [[1, 0.64], [2, 1], [1, 1]]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == [
        "median of 3 modules",
        "kept: ranks 1 to 2, 66.7 % of the whole",
    ]


def test_one_rank_is_marked_by_a_line():
    same = [Spectrum("a", np.float32([2, 1]), 1), Spectrum("b", np.float32([1, 1]), 1)]
    (panel,) = draw_spectrum(same, "").axes
    assert panel.get_lines()[-1].get_xdata() == [1, 1]
