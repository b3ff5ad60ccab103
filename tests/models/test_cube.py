"""Look-up tables: files written by hand, exact answers, damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.cube import Cube, identity_3d, read_cube, write_cube
from models.errors import ConfigError, DataError

# Red fastest: the rows are (r, g, b) = 000 100 010 110 001 101 011 111.
CORNERS = """\
# written by hand
TITLE "Swap red and blue"

LUT_3D_SIZE 2
0 0 0
0 0 1
0 1 0
0 1 1
1 0 0
1 0 1
1 1 0
1 1 1
"""
CURVES = "LUT_1D_SIZE 3\nDOMAIN_MIN 0 0 0\nDOMAIN_MAX 2 1 1\n0 0 1\n0.5 0.25 0.5\n1 1 0\n"


def _file(folder: Path, text: str) -> Path:
    path = folder / "hand.cube"
    path.write_text(text, encoding="utf-8")
    return path


def _pixel(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


@pytest.mark.parametrize("interpolation", ["trilinear", "tetrahedral"])
def test_three_dimensional_file(tmp_path: Path, interpolation: str) -> None:
    cube = read_cube(_file(tmp_path, CORNERS))
    assert (cube.title, cube.size) == ("Swap red and blue", 2)
    torch.testing.assert_close(cube.apply(_pixel(0.9, 0.3, 0.2), interpolation=interpolation), _pixel(0.2, 0.3, 0.9))


@pytest.mark.parametrize(
    "content",
    [
        CORNERS.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + CORNERS.encode(),
        CORNERS.replace("written", "Fa\u00e7on\u0085 written").encode("latin-1"),
        CORNERS.replace(" ", "\t").replace("\tred\tand\tblue", " red and blue").replace("LUT_3D", "lut_3d").encode(),
        CORNERS.replace("0 0 1\n", "  -0.0 +0e-5 1.00000 \n\n# in between\n").encode() + b"\n\n",
        CORNERS.replace("LUT_3D_SIZE 2", "LUT_3D_SIZE 2\nLUT_3D_INPUT_RANGE 0.0 1.0").encode(),
    ],
    ids=["crlf", "bom", "latin-1", "tabs", "spaces", "input range"],
)
def test_files_as_other_programs_write_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hand.cube").write_bytes(content)
    cube = read_cube(tmp_path / "hand.cube")
    torch.testing.assert_close(cube.table, read_cube(_file(tmp_path, CORNERS)).table)
    assert cube.title.casefold().startswith("swap")


@pytest.mark.parametrize("title", ["", "plain", 'the "warm" one', "two\nlines"])
def test_titles_and_domains_come_back(tmp_path: Path, title: str) -> None:
    cube = Cube(identity_3d(2), title, (-0.1234567, 0.0, 0.0), (1.0, 1.0, 65504.25))
    write_cube(cube, tmp_path / "a.cube")
    back = read_cube(tmp_path / "a.cube")
    assert (back.title, back.domain_min, back.domain_max) == (
        title.replace("\n", " "),
        cube.domain_min,
        cube.domain_max,
    )


def test_one_dimensional_file_with_a_domain(tmp_path: Path) -> None:
    cube = read_cube(_file(tmp_path, CURVES))
    # red: domain 0..2, so 1.5 is node 1.5; green: 0.25 is node 0.5; blue: falls from 1 to 0, above the domain
    torch.testing.assert_close(cube.apply(_pixel(1.5, 0.25, 1.7)), _pixel(0.75, 0.125, 0.0))


def test_both_interpolations_differ_as_the_formulas_say() -> None:
    table = torch.zeros(3, 2, 2, 2)
    table[0, 1, 1, 1] = 1.0  # r * g * b trilinearly, min(r, g, b) on tetrahedra
    cube = Cube(table)
    rgb = _pixel(0.5, 0.4, 0.8)
    assert float(cube.apply(rgb, interpolation="trilinear")[0, 0]) == pytest.approx(0.16)
    assert float(cube.apply(rgb, interpolation="tetrahedral")[0, 0]) == pytest.approx(0.4)


@pytest.mark.parametrize("interpolation", ["trilinear", "tetrahedral"])
def test_identity_changes_nothing(interpolation: str) -> None:
    rgb = torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Cube(identity_3d(9)).apply(rgb, interpolation=interpolation), rgb)


def test_trilinear_is_that_of_grid_sample() -> None:
    generator = torch.Generator().manual_seed(1)
    table, rgb = torch.rand(3, 5, 5, 5, generator=generator), torch.rand(1, 3, 6, 4, generator=generator)
    grid = rgb.permute(0, 2, 3, 1)[:, None] * 2 - 1
    wanted = torch.nn.functional.grid_sample(table[None], grid, align_corners=True)[:, :, 0]
    torch.testing.assert_close(Cube(table).apply(rgb, interpolation="trilinear"), wanted)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_written_files_read_back(tmp_path: Path, dimensions: int) -> None:
    table = torch.rand(3, *(4,) * dimensions, generator=torch.Generator().manual_seed(2))
    cube = Cube(table, "mine", (0.0, 0.1, 0.0), (1.0, 1.0, 2.0))
    write_cube(cube, tmp_path / "deep" / "out.cube")
    back = read_cube(tmp_path / "deep" / "out.cube")
    torch.testing.assert_close(back.table, table, atol=6e-7, rtol=0)
    assert (back.title, back.domain_min, back.domain_max) == ("mine", cube.domain_min, cube.domain_max)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CORNERS.replace("1 0 1\n", "1 0\n"), "line 10: expected three numbers, got 2"),
        (CORNERS.replace("1 0 1\n", "1 zero 1\n"), "line 10: expected a finite number, got 'zero'"),
        (CORNERS.replace("1 0 1\n", "1 nan 1\n"), "line 10: expected a finite number, got 'nan'"),
        (CORNERS.replace("1 0 1\n", ""), "line 11: expected 8 rows of values, got 7"),
        (CORNERS.replace("SIZE 2", "SIZE 1"), "line 4: expected LUT_3D_SIZE from 2 to 256"),
        (CORNERS.replace("LUT_3D_SIZE 2\n", ""), "line 4: expected a size before the values"),
        (CORNERS + "LUT_1D_SIZE 2\n", "line 13: expected one size"),
        ("SHAPER 3\n", "line 1: expected TITLE | LUT_1D_SIZE"),
        ("# nothing\n", "line 1: expected LUT_1D_SIZE or LUT_3D_SIZE, got neither"),
        (CURVES.replace("DOMAIN_MAX 2", "DOMAIN_MAX 0"), "line 1: expected a table with a domain"),
    ],
)
def test_damaged_files_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_cube(_file(tmp_path, text))


def test_a_missing_file_and_a_binary_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a \.cube file"):
        read_cube(tmp_path / "none.cube")
    (tmp_path / "binary.cube").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match=r"expected a \.cube file"):
        read_cube(tmp_path / "binary.cube")


def test_wrong_calls() -> None:
    with pytest.raises(ConfigError, match=r"expected \(3, L\)"):
        Cube(torch.zeros(3, 2, 3, 2))
    with pytest.raises(ConfigError, match="shape"):
        Cube(identity_3d(2)).apply(torch.zeros(3, 4, 4))
    with pytest.raises(ConfigError, match=r"trilinear \| tetrahedral"):
        Cube(identity_3d(2)).apply(_pixel(0, 0, 0), interpolation="cubic")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="finite"):
        write_cube(Cube(torch.full((3, 2), float("nan"))), Path("never.cube"))
